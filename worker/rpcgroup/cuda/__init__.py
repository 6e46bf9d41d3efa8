"""Accelerators: streams and events kept in order, and tensors moved between devices and the wire."""

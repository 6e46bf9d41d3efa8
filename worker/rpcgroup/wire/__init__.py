"""Bytes in, objects out: frames, message types, encoding, the handshake. No sockets, no threads, no clock."""

"""Stub while the interface is agreed on."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class RRef(Generic[T]):
    """See torch's RRef."""

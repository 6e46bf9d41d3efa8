"""A worker as users name it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["WorkerInfo"]


@dataclass(frozen=True)
class WorkerInfo:
    """Name and id of a member; prints as torch's does. `incarnation` tells two workers of one name apart."""

    name: str
    id: int
    incarnation: int = field(default=0, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"WorkerInfo(id={self.id}, name={self.name})"

    __str__ = __repr__

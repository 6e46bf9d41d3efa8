"""A worker as users name it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from rpcgroup.errors import WorkerNameError

__all__ = ["WorkerInfo"]


NAME: Final = "^[A-Za-z0-9-_:.]*$"
MAX_NAME: Final = 128


@dataclass(frozen=True)
class WorkerInfo:
    """Name and id of a member; prints as torch's does. `incarnation` tells two workers of one name apart.

    Raises `WorkerNameError` for a name that is empty, too long or has other characters than torch's and Kubernetes'.
    """

    name: str
    id: int
    incarnation: int = field(default=0, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise WorkerNameError("Worker name must be non-empty")
        if len(self.name) >= MAX_NAME:
            raise WorkerNameError(
                f"Worker name must be shorter than {MAX_NAME}, but got {len(self.name)} characters"
            )
        if not _matches(self.name):
            raise WorkerNameError(f"Worker name must match {NAME}, but got {self.name}")

    def __repr__(self) -> str:
        return f"WorkerInfo(id={self.id}, name={self.name})"

    __str__ = __repr__


_matches: Final = re.compile(NAME.replace("-_", r"\-_")).match

"""The control groups under which a real node's pods run: made before its kubelet starts, removed after its end.

The kernel keeps the empty groups of a node that was killed; the next start removes them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["cgroup"]

ROOT: Final = Path("/sys/fs/cgroup")
PREFIX: Final = "rpcgroup-bed-"


@contextlib.contextmanager
def cgroup() -> Iterator[str]:
    """The name of a new group that exists in every hierarchy; no process may be in it at the end."""
    for hierarchy in _hierarchies():
        for left in hierarchy.glob(f"{PREFIX}*"):
            if not Path("/proc", left.name.removeprefix(PREFIX)).exists():
                _remove(left)
    name = f"{PREFIX}{os.getpid()}"
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir()
    for mask in ("cpuset.cpus", "cpuset.mems"):  # empty, those of version 1 refuse every process
        if (ROOT / "cpuset").exists():
            (ROOT / "cpuset" / name / mask).write_text((ROOT / "cpuset" / mask).read_text())
    try:
        yield name
    finally:
        for hierarchy in _hierarchies():
            _remove(hierarchy / name)


def _hierarchies() -> list[Path]:
    """Of version 1, one for each controller, and beside them `unified`; with version 2 alone there is but one."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def _remove(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)

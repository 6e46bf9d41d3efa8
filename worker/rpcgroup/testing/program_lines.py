"""Where a program is: the innermost lines of its stack that a person who looks for a fault wants to see."""

from __future__ import annotations

import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch

__all__ = ["program_lines"]

_INNERMOST = 4
_HERE = Path(__file__).parent
_PACKAGE = str(_HERE.parent)
_SUITES = str(Path(torch.__file__).parent / "testing/_internal/distributed")
_FOREIGN = tuple({"<", *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))})
_RECORDER = {
    str(_HERE / f"{module}.py")
    for module in (
        "current_streams",
        "device_tensor",
        "emulated_cuda",
        "emulated_ipc",
        "emulated_streams",
        "emulated_tensors",
        "program_lines",
        "recorded_streams",
        "recording_device",
    )
}


def program_lines() -> str:
    """As "at agent/port.py:12 < agent/core.py:34": without the standard library, torch and the recorder itself.

    torch's own tests are programs as well.
    """
    lines: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(lines) < _INNERMOST:
        file = frame.f_code.co_filename
        if _is_shown(file):
            lines.append(f"{_short(file)}:{frame.f_lineno}")
        frame = frame.f_back
    return f"at {' < '.join(lines)}" if lines else "at an unknown place"


@lru_cache(maxsize=1024)
def _is_shown(file: str) -> bool:
    return file not in _RECORDER and (file.startswith((_PACKAGE, _SUITES)) or not file.startswith(_FOREIGN))


@lru_cache(maxsize=1024)
def _short(file: str) -> str:
    return "/".join(Path(file).parts[-2:])

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Python = Callable[..., str]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Runs a program in a process of its own, which the swap may change; returns what it prints."""

    def run(program: str, **environment: str) -> str:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(program))
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", str(path)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    return run

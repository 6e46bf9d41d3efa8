"""The leak check itself: it finds each kind of leak, names it, and lets a clean test pass."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

LEAKY = """
import socket, subprocess, threading
kept = []

def test_clean():
    with socket.socket(), open("file", "w"):
        thread = threading.Thread(target=int, name="rpcgroup-short")
        thread.start()
        thread.join()
    subprocess.run(["true"], check=True)

def test_leaky():
    kept.append(socket.socket())
    kept.append(open("kept-file", "w"))
    kept.append(subprocess.Popen(["sleep", "60"]))
    threading.Thread(target=threading.Event().wait, args=(60,), name="rpcgroup-kept", daemon=True).start()

def test_next_is_not_blamed():
    pass
"""
END = """
def test_end():
    kept[-1].kill()
    kept[-1].wait()
"""


def test_each_kind_of_leak_is_found(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path / "conftest.py")
    (tmp_path / "test_leaky.py").write_text(LEAKY + END)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert "4 passed, 1 error" in result.stdout, result.stdout
    assert "ERROR at teardown of test_leaky" in result.stdout
    for trace in ("thread rpcgroup-kept (daemon)", "sleep 60", "socket:[", "kept-file"):
        assert trace in result.stdout, result.stdout

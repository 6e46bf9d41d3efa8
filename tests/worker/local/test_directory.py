from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rpcgroup.errors import GroupError, UnknownGroupError
from rpcgroup.local.directory import GroupDirectory, find_running, running_groups, state_root


@pytest.fixture
def directory(tmp_path: Path) -> GroupDirectory:
    return GroupDirectory(tmp_path, "default", "digits")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_root_goes_with_the_login_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert state_root() == tmp_path / "rpcgroup"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert state_root() == Path("/home/ada/.local/state/rpcgroup")


def test_only_the_user_can_read_it(directory: GroupDirectory) -> None:
    with directory.claimed():
        directory.write_secret()
        assert mode(directory.path) == 0o700
        assert mode(directory.secret) == 0o600
        assert len(bytes.fromhex(directory.secret.read_text())) == 32


def test_a_second_driver_is_refused_and_told_of_the_first(directory: GroupDirectory) -> None:
    with directory.claimed():
        directory.write_state()
        refused = pytest.raises(GroupError, match=rf"default/digits runs already \(pid {os.getpid()}\)")
        with refused, directory.claimed():
            pass
    with directory.claimed():
        pass


def test_a_look_at_the_moment_of_the_claim_does_not_refuse_it(directory: GroupDirectory) -> None:
    with directory.claimed():
        pass
    looks = subprocess.Popen(
        [sys.executable, "-c", LOOK_FOR_EVER, str(directory.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert looks.stdout
        assert looks.stdout.readline() == "looking\n"
        for _ in range(50):
            with directory.claimed():
                assert directory.is_running()
    finally:
        looks.kill()
        looks.communicate()


LOOK_FOR_EVER = """
import sys
from pathlib import Path
from rpcgroup.local.directory import running_groups
print("looking", flush=True)
while True:
    running_groups(Path(sys.argv[1]))
"""


def test_remnants_of_a_dead_driver_are_recognised_and_removed(directory: GroupDirectory) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(directory.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout
    assert driver.stdout.readline() == "claimed\n"
    assert [d.group for d in running_groups(directory.root)] == ["digits"]
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert directory.state()["pid"] == driver.pid
    assert directory.secret.exists()
    assert running_groups(directory.root) == []
    with directory.claimed():
        assert not directory.secret.exists()
        assert directory.state() == {}


CLAIM = """
import sys
from pathlib import Path
from rpcgroup.local.directory import GroupDirectory
directory = GroupDirectory(Path(sys.argv[1]), "default", "digits")
with directory.claimed():
    directory.write_secret()
    directory.write_state()
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_logs_outlive_the_driver_until_the_next_run(directory: GroupDirectory) -> None:
    with directory.claimed():
        (directory.logs / "w.log").write_text("what went wrong")
        directory.write_secret()
    assert (directory.logs / "w.log").exists()
    assert not directory.secret.exists()
    with directory.claimed():
        assert not (directory.logs / "w.log").exists()


def test_a_place_that_cannot_be_written_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "default").write_text("a file")
    with pytest.raises(GroupError, match=str(tmp_path)), GroupDirectory(tmp_path, "default", "g").claimed():
        pass


def test_a_group_is_found_by_name_and_the_running_are_listed(tmp_path: Path) -> None:
    with (
        GroupDirectory(tmp_path, "a", "digits").claimed(),
        GroupDirectory(tmp_path, "a", "rl").claimed(),
        GroupDirectory(tmp_path, "b", "rl").claimed(),
    ):
        assert find_running("digits", tmp_path).namespace == "a"
        assert find_running("b/rl", tmp_path).namespace == "b"
        with pytest.raises(UnknownGroupError, match="running: a/digits, a/rl, b/rl"):
            find_running("digit", tmp_path)
        with pytest.raises(UnknownGroupError, match="more than one group here: a/rl, b/rl"):
            find_running("rl", tmp_path)
    with pytest.raises(UnknownGroupError, match="rpcgroup run -f FILE"):
        find_running("digits", tmp_path)

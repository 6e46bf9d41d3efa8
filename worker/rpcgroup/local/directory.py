"""Where a running local group keeps what belongs to it, and how a command finds it.

`<root>/<namespace>/<group>/` is readable by its user only. Its driver holds a lock on the file `lock` for as
long as it lives, so a directory whose lock is free belongs to a dead driver, whatever else lies in it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpcgroup.errors import GroupError, UnknownGroupError

__all__ = ["GroupDirectory", "find_running", "running_groups", "state_root"]


def state_root() -> Path:
    """`$XDG_RUNTIME_DIR/rpcgroup`, which goes with the login, or else `~/.local/state/rpcgroup`."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "rpcgroup"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "rpcgroup"


@dataclass(frozen=True)
class GroupDirectory:
    """The directory of one group; `root` is for tests and defaults to `state_root()` at the callers."""

    root: Path
    namespace: str
    group: str

    @property
    def path(self) -> Path:
        return self.root / self.namespace / self.group

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def secret(self) -> Path:
        return self.path / "secret"

    @property
    def certificates(self) -> Path:
        return self.path / "certificates"

    @property
    def etcd(self) -> Path:
        return self.path / "etcd"

    @property
    def logs(self) -> Path:
        """Outlives the driver, until the group's next run."""
        return self.path / "logs"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory as the group's only driver; remnants of a dead one are removed.

        Raises `GroupError` where another driver holds it or it cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise GroupError(
                f"cannot keep the group's state in {self.path}: {exc.strerror}; "
                "set XDG_RUNTIME_DIR to a directory of yours"
            ) from exc
        try:
            if not any(try_lock(lock, fcntl.LOCK_EX) for _ in attempts()):
                raise GroupError(
                    f"the group {self.namespace}/{self.group} runs already (pid {self.state().get('pid')}); "
                    f"`rpcgroup status {self.group}` shows it, Ctrl-C in its terminal ends it"
                )
            self._clear()
            shutil.rmtree(self.logs, ignore_errors=True)
            self.logs.mkdir(mode=0o700)
            yield
            self._clear()
        finally:
            os.close(lock)

    def write_secret(self) -> None:
        """A fresh one: 256 random bits, readable by the user only."""
        descriptor = os.open(self.secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))

    def write_state(self, **facts: Any) -> None:
        """What a command may know without asking the driver."""
        new = self.path / "state.json.new"
        new.write_text(json.dumps({"pid": os.getpid(), **facts}))
        new.replace(self.path / "state.json")

    def state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        except (OSError, ValueError):
            return {}
        return state

    def is_running(self) -> bool:
        """Whether a driver holds the directory."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return False
        try:
            return not try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _clear(self) -> None:
        for file in (self.path / "state.json", self.socket, self.secret):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.certificates, ignore_errors=True)
        shutil.rmtree(self.etcd, ignore_errors=True)


def attempts() -> Iterator[None]:
    """A few, over 0.1 s: a command that looks whether the group runs holds the lock for an instant."""
    for _ in range(5):
        yield
        time.sleep(0.02)


def try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running_groups(root: Path | None = None) -> list[GroupDirectory]:
    """Every group of this user that runs on this machine, by name."""
    root = root or state_root()
    found = [GroupDirectory(root, lock.parts[-3], lock.parts[-2]) for lock in root.glob("*/*/lock")]
    return sorted((d for d in found if d.is_running()), key=lambda d: (d.namespace, d.group))


def find_running(name: str, root: Path | None = None) -> GroupDirectory:
    """The running group of that name, written `group` or `namespace/group`. Raises `UnknownGroupError`."""
    running = running_groups(root)
    found = [d for d in running if name in (d.group, f"{d.namespace}/{d.group}")]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{d.namespace}/{d.group}" for d in found or running)
    if found:
        raise UnknownGroupError(f"{name!r} is the name of more than one group here: {names}")
    raise UnknownGroupError(
        f"no group {name!r} runs on this machine; "
        + (f"running: {names}" if names else "none does (`rpcgroup run -f FILE` starts one)")
    )

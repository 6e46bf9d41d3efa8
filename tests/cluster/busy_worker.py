"""A worker that calls every other one all the time, and writes what it sees: one JSON object a line.

Run as `python -m tests.cluster.busy_worker` in a pod of a group. It ends when it is asked to leave.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Final

import rpcgroup as rpc
from rpcgroup.errors import RpcGroupError
from rpcgroup.group import Group

PAUSE: Final = 0.1
"""Seconds between two rounds of calls."""
REPORT_SECONDS: Final = 1.0
CALL_SECONDS: Final = 20.0


def main() -> None:
    group = rpc.init_rpc()
    leaving = threading.Event()
    rpc.on_drain(lambda *_: leaving.set())
    watching = threading.Thread(target=_tell_changes, args=(group,))
    watching.start()
    calls: dict[str, int] = {}
    report_at = 0.0
    while not leaving.wait(PAUSE):
        for member in group.members():
            if member.name != group.name and _call(member.name, member.incarnation):
                calls[member.name] = calls.get(member.name, 0) + 1
        if time.time() >= report_at:
            _tell("calls", incarnation=group.me.incarnation, to=calls)
            report_at = time.time() + REPORT_SECONDS
    rpc.shutdown()
    watching.join()


def _call(name: str, incarnation: int) -> bool:
    began = time.time()
    try:
        assert rpc.rpc_sync(name, abs, args=(-7,), timeout=CALL_SECONDS) == 7
    except RpcGroupError as exc:
        _tell("failed", who=name, incarnation=incarnation, error=str(exc), began=began)
        return False
    return True


def _tell_changes(group: Group) -> None:
    changes = group.changes()
    _tell("joined", who=[member.name for member in group.members()])
    for change in changes:
        _tell(change.kind.value, who=change.member.name, incarnation=change.member.incarnation)


def _tell(what: str, **more: Any) -> None:
    print(json.dumps({"at": time.time(), "what": what, **more}), flush=True)


if __name__ == "__main__":
    main()

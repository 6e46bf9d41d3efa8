"""A worker that is a member and nothing else: it joins, waits until it is asked to leave, and leaves.

Arguments: `crash` ends it by exit status 3 once it is a member, `finish` well; `stay` makes it ignore the
request.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

from rpcgroup import contract
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, GroupView, RecordEvent
from rpcgroup.membership.url import open_rendezvous


class Listener:
    def __init__(self) -> None:
        self.asked_to_leave = threading.Event()

    def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None: ...

    def on_drain(self, request: DrainRequest) -> None:
        print(f"drain: {request.reason}", flush=True)
        self.asked_to_leave.set()


def main(behaviour: str = "") -> None:
    listener = Listener()
    signal.signal(signal.SIGTERM, lambda *_: listener.asked_to_leave.set())
    seat = open_rendezvous(os.environ[contract.ENV_RENDEZVOUS])
    record = MemberRecord(
        os.environ[contract.ENV_NAME],
        os.environ[contract.ENV_ROLE],
        state=MemberState.READY,
        pod_name=os.environ[contract.ENV_POD_NAME],
        pod_uid=os.environ[contract.ENV_POD_UID],
    )
    seat.join(record, admit=lambda *_: None, listener=listener, timeout=20.0)
    seat.put_stats(b'{"calls": 1, "progress": {"step": 5}}')
    print("joined", flush=True)
    if behaviour == "crash":
        os._exit(3)
    if behaviour != "finish":
        listener.asked_to_leave.wait()
    if behaviour == "stay":
        threading.Event().wait()
    seat.leave(5.0)
    seat.close()
    print("left", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

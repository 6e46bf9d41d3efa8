"""The processes of a group that meets over a store: run by test_meeting.py, as `store_members.py SCENARIO URL`.

One process imports torch and forks the members; each prints what became of it, as a line of JSON.
"""

from __future__ import annotations

import json
import operator
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

import rpcgroup as rpc
from rpcgroup import contract, meeting
from rpcgroup.errors import GroupError

SIZE: Final = 4
PATIENCE: Final = 60.0


def begin(rank: int, url: str, *, size: int | None = SIZE, timeout: float = PATIENCE) -> rpc.Group:
    options = rpc.AgentOptions(rpc_timeout=timeout)
    return rpc.init_rpc(f"w{rank}", rank=rank, world_size=size, init_method=url, rpc_backend_options=options)


def call_all() -> None:
    for name in (f"w{rank}" for rank in range(SIZE)):
        assert rpc.rpc_sync(name, operator.add, (1, 2)) == 3
        assert rpc.remote(name, torch.add, (torch.ones(2), 1)).to_here().tolist() == [2.0, 2.0]


def cycles(rank: int, url: str) -> Any:
    turns = 20 if url.startswith("file") else 5  # torch's TCPStore looks up the name of every 25th client
    for _ in range(turns):
        group = begin(rank, url)
        assert [m.name for m in group.members()] == [f"w{n}" for n in range(SIZE)]
        assert (group.is_static, group.world_size) == (True, SIZE)
        call_all()
        rpc.shutdown()
    return turns


def one_from_elsewhere(rank: int, url: str) -> Any:
    if rank == 1:
        rpc.init_rpc("alone", rank=0, world_size=1, store=HashStore())
        rpc.shutdown()
    begin(rank, url, timeout=PATIENCE / 2)
    call_all()
    rpc.shutdown()
    return "met"


def addresses(rank: int, url: str) -> Any:
    """How they connect."""
    group = begin(rank, url)
    call_all()
    schemes = {member.address.partition("://")[0] for member in group.members()}
    rpc.shutdown()
    return sorted(schemes)


def early_end(rank: int, url: str) -> Any:
    """Rank 0, which serves a TCPStore, ends as soon as it can; the others are none the worse."""
    begin(rank, url)
    if rank == 0:
        rpc.shutdown(graceful=False)
        return "left"
    for other in range(1, SIZE):
        assert rpc.rpc_sync(f"w{other}", operator.add, (1, 2)) == 3
    rpc.shutdown()
    return "met"


def failed_start(rank: int, url: str) -> Any:
    if rank == 2:
        os.environ[contract.ENV_SECRET_FILE] = "/no/such/file"
    try:
        begin(rank, url)
    except GroupError as exc:
        return str(exc)
    return "joined"


def missing(rank: int, url: str) -> Any:
    if rank == 2:
        return ""
    meeting.LEAST_PATIENCE = 0.0  # type: ignore[misc]
    try:
        begin(rank, url, timeout=1.5)
    except GroupError as exc:
        return str(exc)
    return "joined"


def death(rank: int, url: str) -> Any:
    """Of rank 0, which would lead; nobody calls it, and nobody waits for it."""
    begin(rank, url)
    call_all()
    if rank == 0:
        os._exit(0)
    rpc.shutdown()
    return "left"


def dynamic(rank: int, url: str) -> Any:
    """Rank 0 stays; the others come, call it and each other, and leave, or die."""
    if rank == 3:
        group = begin(rank, url, size=None)
        group.wait_for(2, timeout=PATIENCE)
        assert rpc.rpc_sync("w0", operator.add, (1, 2)) == 3
        os._exit(0)
    group = begin(rank, url, size=None)
    assert not group.is_static
    if rank:
        group.wait_for(2, timeout=PATIENCE)
        assert rpc.rpc_sync("w0", operator.add, (1, 2)) == 3
        rpc.shutdown()
        return "left"
    ends = set()
    for change in group.changes():
        if change.kind in (rpc.ChangeKind.LEFT, rpc.ChangeKind.DIED):
            ends.add((change.member.name, change.kind.value))
        if len(ends) == SIZE - 1:
            break
    rpc.shutdown()
    return sorted(ends)


SCENARIOS: Final[dict[str, Callable[[int, str], Any]]] = {
    f.__name__: f
    for f in (cycles, one_from_elsewhere, addresses, early_end, failed_start, missing, death, dynamic)
}


def member(rank: int, scenario: str, url: str) -> None:
    try:
        result = SCENARIOS[scenario](rank, url)
    except BaseException:
        result = traceback.format_exc()
    os.write(1, f"{json.dumps([rank, result])}\n".encode())  # at once: the others write there too


def main(scenario: str, url: str) -> None:
    children = []
    for rank in range(SIZE):
        pid = os.fork()
        if not pid:
            member(rank, scenario, url)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])

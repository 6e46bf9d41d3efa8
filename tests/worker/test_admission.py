from __future__ import annotations

from dataclasses import replace

import pytest

from rpcgroup.admission import admit, admit_all
from rpcgroup.contract import PROTOCOL_VERSION
from rpcgroup.errors import JoinError
from rpcgroup.membership.record import MemberRecord

NEWER = PROTOCOL_VERSION + 1


def record(rank: int, **fields: object) -> MemberRecord:
    made = MemberRecord(name=f"w{rank}", id=rank, incarnation=rank + 1, address=f"tcp://w{rank}:1")
    return replace(made, **fields)  # type: ignore[arg-type]


def test_those_that_fit() -> None:
    members = [record(n) for n in range(4)]
    admit(members[0], [])
    admit(members[3], members[:3])
    admit_all(members[0], [])
    admit_all(members[3], members[:3])


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (record(1, name="other"), "rank 1: "),
        (record(2, address="tls://w2:1"), "listens by tls"),
        (record(2, protocol=NEWER), f"protocol version {NEWER}"),
        (record(2, device_maps={"w0": {"cuda:0": "cuda:9"}}), "w2"),
    ],
)
def test_who_does_not_fit_to_those_before_it(odd: MemberRecord, reason: str) -> None:
    with pytest.raises(JoinError, match=reason):
        admit(odd, [record(0), record(1)])


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (record(1, protocol=NEWER), "protocol version"),
        (record(1, address="tls://w1:1"), "by tls"),
        (record(1, device_maps={"w0": {"cuda:0": "cuda:9"}}), "Node w1"),
        (record(1, device_maps={"nobody": {"cpu": "cpu"}}), "invalid target node names"),
    ],
)
@pytest.mark.parametrize("last", [0, 1, 2])
def test_one_that_does_not_fit_spoils_a_static_group(odd: MemberRecord, reason: str, last: int) -> None:
    members = [record(0), odd, record(2)]
    with pytest.raises(JoinError, match=reason):
        admit_all(members[last], [m for m in members if m is not members[last]])


def test_a_map_may_name_who_is_not_there_yet_where_others_may_come() -> None:
    admit(record(1, device_maps={"w7": {"cpu": "cpu"}}), [record(0)])

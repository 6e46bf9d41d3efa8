"""Groups of real processes that meet over a file and over a port: see store_members.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rpcgroup import c10d, contract
from rpcgroup.agent.options import AgentOptions
from rpcgroup.c10d import dist
from rpcgroup.environment import Environment
from rpcgroup.errors import GroupError, JoinError, RendezvousError
from rpcgroup.meeting import meet, patience
from rpcgroup.membership.memory import MemoryRendezvous
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.store.dynamic import DynamicRendezvous
from rpcgroup.membership.store.static import StaticRendezvous
from rpcgroup.testing.rendezvous import RecordingListener
from tests.worker.transport import certificates

PROGRAM = Path(__file__).parent / "store_members.py"
PATIENCE = 100.0

Run = Callable[[str], dict[int, Any]]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RPCGROUP_")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=["file", "tcp"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """What became of each member of a scenario, by rank."""
    url = f"file://{tmp_path}/store"
    if request.param == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    def run(scenario: str) -> dict[int, Any]:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), scenario, url],
            capture_output=True,
            timeout=PATIENCE,
            text=True,
            check=True,
        )
        return dict(json.loads(line) for line in done.stdout.splitlines())

    return run


def test_group_after_group_in_one_process(run: Run) -> None:
    turns = run("cycles")
    assert set(turns) == {0, 1, 2, 3}
    assert set(turns.values()) in ({20}, {5}), turns


def test_one_that_has_been_in_a_group_elsewhere_meets_those_that_have_not(run: Run) -> None:
    assert run("one_from_elsewhere") == dict.fromkeys(range(4), "met")


def test_the_others_go_on_when_rank_0_ends_early(run: Run) -> None:
    assert run("early_end") == {0: "left", 1: "met", 2: "met", 3: "met"}


def test_one_that_cannot_start_fails_them_all_with_its_reason(run: Run) -> None:
    reasons = run("failed_start")
    assert "cannot read the group's secret" in reasons.pop(2)
    (reason,) = set(reasons.values())
    assert reason.startswith("w2 (rank 2) could not start: cannot read the group's secret")


def test_one_that_does_not_come_is_named_by_all_who_do(run: Run) -> None:
    reasons = run("missing")
    assert reasons.pop(2) == ""
    (reason,) = set(reasons.values())
    assert reason.startswith("1 of 4 members did not come within 1.5 s: ranks 2; there are: w0 (rank 0)")
    assert (
        ". This worker waited at tcp://127.0.0.1:" in reason or ". This worker waited at file:///" in reason
    )


def test_nobody_waits_at_the_end_for_one_that_died(run: Run) -> None:
    assert run("death") == {1: "left", 2: "left", 3: "left"}


def test_a_dynamic_group_hears_of_joins_leaves_and_deaths(run: Run) -> None:
    results = run("dynamic")
    assert results == {0: [["w1", "left"], ["w2", "left"], ["w3", "died"]], 1: "left", 2: "left"}


# One process.
def test_each_kind_of_place() -> None:
    assert isinstance(meet("memory://p/n/g", None, 0, 2, 1.0).rendezvous, MemoryRendezvous)
    static, dynamic = meet("", dist.HashStore(), 0, 2, 1.0), meet("", dist.HashStore(), 0, None, 1.0)
    assert isinstance(static.rendezvous, StaticRendezvous)
    assert isinstance(dynamic.rendezvous, DynamicRendezvous)
    assert (static.world_size, dynamic.world_size) == (2, None)


def test_a_rank_beyond_the_world_size_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(JoinError, match="rank 5 is none of 0 to 1, the ranks of world_size 2"):
        meet("tcp://127.0.0.1:1", None, 5, 2, 60.0)


@pytest.mark.parametrize("place", ["htp://x", "localhost:2379", ""])
def test_what_is_no_place_is_answered_with_those_there_are(place: str) -> None:
    with pytest.raises(
        RendezvousError, match=r"init_method='.*' is no place to meet: expected etcd://.* or env://"
    ):
        meet(place, None, 0, 1, PATIENCE)


def test_a_store_wins_over_a_url() -> None:
    assert isinstance(meet("memory://p/n/g", dist.HashStore(), 0, 2, 1.0).rendezvous, StaticRendezvous)


def test_who_meets_over_a_store_agrees_on_identity_and_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = dist.HashStore(), dist.HashStore()
    one, two, third = (meet("", s, 0, None, 1.0) for s in (store, store, other))
    assert one.group() == two.group() != third.group()
    assert one.secret() == two.secret() != third.secret()
    monkeypatch.setenv(contract.ENV_SECRET, "given")
    assert one.secret() == third.secret() == b"given"


def test_who_cannot_make_its_agent_tells_the_others() -> None:
    store = dist.HashStore()
    meeting = meet("", store, 1, 2, 1.0)
    meeting.give_up("w1", OSError("the port is taken"))
    with pytest.raises(GroupError, match=r"w1 \(rank 1\) could not start: the port is taken"):
        # The next group in this process would have another prefix.
        StaticRendezvous(meeting.rendezvous._client, 2).join(  # type: ignore[attr-defined]
            MemberRecord(name="w0", id=0),
            admit=lambda last, others: None,
            listener=None,
            timeout=1.0,  # type: ignore[arg-type]
        )


def test_tls_needs_to_know_the_certificates_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (contract.ENV_TLS_CA_FILE, contract.ENV_TLS_CERT_FILE, contract.ENV_TLS_KEY_FILE):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    meeting = meet("", dist.HashStore(), 0, 2, 1.0)
    with pytest.raises(GroupError, match=contract.ENV_GROUP):
        meeting.make_agent("w0", Environment.read(), AgentOptions())
    meeting.rendezvous.close()


def test_a_group_with_certificates_talks_tls(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificates.write(tmp_path / "tls", certificates.issue(name=contract.tls_name("default", "g")))
    monkeypatch.setenv(contract.ENV_GROUP, "g")
    for name, path in (
        (contract.ENV_TLS_CA_FILE, files.authorities),
        (contract.ENV_TLS_CERT_FILE, files.certificate),
        (contract.ENV_TLS_KEY_FILE, files.key),
    ):
        path.resolve().chmod(0o600)
        monkeypatch.setenv(name, str(path))
    assert run("addresses") == {rank: ["tls"] for rank in range(4)}


def test_the_address_to_listen_on() -> None:
    agent = meet("", dist.HashStore(), 0, 1, 1.0).make_agent("w0", Environment.read(), AgentOptions())
    try:
        assert agent.address.startswith("tcp://")
    finally:
        agent.close()


def test_static_and_dynamic_members_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    dynamic = meet("", store, 0, None, 1.0).rendezvous
    meet("", store, 0, 2, 1.0)  # nobody is there yet
    dynamic.join(
        MemberRecord(name="w0"),
        admit=lambda mine, earlier: None,
        listener=RecordingListener(),
        timeout=1.0,
    )
    with pytest.raises(JoinError, match=r"mixes statically and dynamically.*a dynamic group"):
        meet("", store, 0, 2, 1.0)
    dynamic.leave(1.0)
    monkeypatch.setattr(c10d, "_inits", Counter())  # as in another process, and the next one too
    meet("", store, 0, 2, 1.0).group()
    monkeypatch.setattr(c10d, "_inits", Counter())
    with pytest.raises(JoinError, match=r"mixes statically and dynamically.*a static group"):
        meet("", store, 0, None, 1.0)


def test_patience() -> None:
    assert [patience(seconds) for seconds in (0.0, 0.5, 60.0)] == [1800.0, 5.0, 60.0]

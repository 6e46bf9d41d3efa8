"""Agents that talk TLS: calls as ever, strangers refused, certificates renewed under traffic."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.options import AgentOptions
from rpcgroup.control.certificates import Authority, Files
from rpcgroup.errors import PeerUnreachableError
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.testing.cluster import SECRET, LocalCluster
from rpcgroup.testing.faults import Cut, FaultyTransport
from rpcgroup.transport.base import Stream, Transport
from rpcgroup.transport.credentials import TlsCredentials
from rpcgroup.transport.tcp import TcpTransport
from rpcgroup.transport.tls import TlsTransport
from tests.worker.transport.certificates import NAME, credentials, issue, write

PATIENCE = 60.0
LASTING = AgentOptions(
    suspicion=PATIENCE, resume_window=2 * PATIENCE, connect_timeout=PATIENCE, handshake_timeout=PATIENCE
)
"""Reconnecting takes as long as it takes: the machine may be loaded."""


@pytest.fixture
def network(tmp_path: Path) -> FaultyTransport:
    return FaultyTransport(TlsTransport(credentials(tmp_path)))


@pytest.fixture
def cluster(network: FaultyTransport) -> Iterator[LocalCluster]:
    with LocalCluster("ab", transport=network, options=LASTING) as cluster:
        yield cluster


@pytest.fixture
def a(cluster: LocalCluster) -> Agent:
    return cluster.agent("a")


def echo(value: object) -> object:
    return value


def total(tensor: torch.Tensor) -> float:
    return float(tensor.sum())


def in_threads(*functions: Callable[[], None]) -> list[BaseException]:
    """What went wrong in them."""
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_a_large_tensor_there_and_back(a: Agent) -> None:
    tensor = torch.arange(16 << 20, dtype=torch.float32)
    answer = a.rpc_sync("b", echo, (tensor,), timeout=PATIENCE)
    assert tensor.nbytes == 64 << 20
    assert torch.equal(answer, tensor)


def test_a_thousand_calls_at_once(a: Agent) -> None:
    futures = [a.rpc_async("b", echo, (n,), timeout=PATIENCE) for n in range(1024)]
    assert [future.wait() for future in futures] == list(range(1024))


def test_many_threads_with_small_and_large_calls_in_both_directions(cluster: LocalCluster) -> None:
    tensor = torch.ones(300_000)

    def calls(caller: str, callee: str) -> Callable[[], None]:
        def run() -> None:
            for n in range(60):
                assert cluster.agent(caller).rpc_sync(callee, echo, (n,), timeout=PATIENCE) == n
                if n % 10 == 0:
                    assert (
                        cluster.agent(caller).rpc_sync(callee, total, (tensor,), timeout=PATIENCE) == 300_000
                    )

        return run

    assert in_threads(*[calls("a", "b"), calls("b", "a")] * 6) == []


def test_broken_connections_lose_and_repeat_nothing(cluster: LocalCluster, network: FaultyTransport) -> None:
    a, tensor = cluster.agent("a"), torch.arange(500_000)
    a.rpc_sync("b", echo, (0,), timeout=PATIENCE)
    network._cuts = iter(
        [Cut(sent=n) for n in (900, 1500, 5_000, 100_000)] + [Cut(received=n) for n in (300, 70_000)]
    )
    network.sever(cluster.address("b"))
    for n in range(40):
        answer = a.rpc_async("b", echo, ((n, tensor),), timeout=PATIENCE).wait()
        assert answer[0] == n
        assert torch.equal(answer[1], tensor)
    assert network.severed == 7


# -- strangers -----------------------------------------------------------------------------------------------


@pytest.fixture
def join(cluster: LocalCluster) -> Iterator[Callable[[Transport], Agent]]:
    """Somebody who knows the group's secret and the address of `b`, by another transport."""
    joined: list[Agent] = []

    def join(transport: Transport) -> Agent:
        agent = Agent(
            name="x",
            group="cluster",
            secret=SECRET,
            transport=transport,
            host="127.0.0.1",
            options=AgentOptions(handshake_timeout=1.0),
        )
        joined.append(agent)
        agent.start(
            MemberRecord(name="x", id=77, address=agent.address, incarnation=7, state=MemberState.READY)
        )
        b = cluster["b"].me
        agent.add_member(
            MemberRecord(name="b", id=b.id, address=cluster.address("b"), incarnation=b.incarnation)
        )
        return agent

    yield join
    for agent in joined:
        agent.close()


def test_a_worker_of_another_authority_is_refused_on_both_sides(
    join: Callable[[Transport], Agent], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = join(TlsTransport(credentials(tmp_path / "other")))
    started = time.monotonic()
    with pytest.raises(
        PeerUnreachableError, match=r"was not accepted: its certificate is not one of this group"
    ):
        stranger.rpc_sync("b", echo, (1,), timeout=PATIENCE)
    assert time.monotonic() - started < PATIENCE, "it is not tried again and again"
    deadline = time.monotonic() + PATIENCE
    while (
        "a connection was refused: it refused: unknown ca" not in caplog.text and time.monotonic() < deadline
    ):
        threading.Event().wait(0.01)
    assert "a connection was refused: it refused: unknown ca" in caplog.text


def test_a_worker_without_tls_is_told_so(join: Callable[[Transport], Agent]) -> None:
    with pytest.raises(PeerUnreachableError, match="cannot be reached: not a tcp address: 'tls://"):
        join(TcpTransport()).rpc_sync("b", echo, (1,), timeout=PATIENCE)


class PlainAtTheSamePort(TcpTransport):
    """What only has the wrong idea of the address."""

    def connect(self, address: str, timeout: float) -> Stream:  # type: ignore[override]
        return super().connect(address.replace("tls:", "tcp:"), timeout)


def test_a_listener_with_certificates_speaks_nothing_but_tls(
    join: Callable[[Transport], Agent], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rpcgroup"):
        with pytest.raises(PeerUnreachableError, match="cannot be reached"):
            join(PlainAtTheSamePort()).rpc_sync("b", echo, (1,), timeout=PATIENCE)
        assert "a connection was refused: it does not speak TLS" in caplog.text


# -- renewal -------------------------------------------------------------------------------------------------


class OwnFiles:
    """A network where each listener, and so each agent, has files of its own. Who dials is told by the thread."""

    scheme = "tls"

    def __init__(self, folder: Path, files: Files) -> None:
        self.folder = folder
        self.files = files
        self.transports: dict[str, FaultyTransport] = {}

    def of(self, name: str) -> FaultyTransport:
        folder = self.folder / name
        transport = TlsTransport(TlsCredentials(write(folder, self.files), NAME))
        return self.transports.setdefault(name, FaultyTransport(transport))

    def renew(self, name: str, files: Files) -> None:
        write(self.folder / name, files)


def changes(old: Authority, new: Authority) -> Sequence[Files]:
    """What a group's files are in turn, from one authority to the next."""
    now = time.time()
    both = old.certificate + new.certificate
    return (
        old.sign(NAME, old.certificate, now),
        old.sign(NAME, both, now),
        new.sign(NAME, both, now),
        new.sign(NAME, new.certificate, now),
    )


def test_certificates_are_renewed_under_traffic_and_no_call_fails(tmp_path: Path) -> None:
    """Through a change of the authority, one worker after the other; after each the connections are broken."""
    now = time.time()
    first, *later = changes(Authority.new(now), Authority.new(now))
    network = OwnFiles(tmp_path, first)
    agents: dict[str, Agent] = {}
    for n, name in enumerate("abc"):
        agents[name] = Agent(
            name=name,
            group="g",
            secret=SECRET,
            transport=network.of(name),
            host="127.0.0.1",
            options=LASTING,
        )
        agents[name].start(record(agents[name], n))
    for one in agents.values():
        for n, other in enumerate(agents.values()):
            one.add_member(record(other, n))
    renewed = threading.Event()
    made = dict.fromkeys(agents, 0)

    def calls(caller: str, callee: str) -> Callable[[], None]:
        def run() -> None:
            while not renewed.is_set():
                assert (
                    agents[caller].rpc_sync(callee, echo, (made[caller],), timeout=PATIENCE) == made[caller]
                )
                made[caller] += 1

        return run

    def renew() -> None:
        try:
            for files in later:
                for name in agents:
                    network.renew(name, files)
                    for transport in network.transports.values():
                        for agent in agents.values():
                            transport.sever(agent.address)
                    wait_for_progress(made)
        finally:
            renewed.set()

    try:
        pairs = [calls(x, y) for x, y in ("ab", "bc", "ca")]
        assert in_threads(*pairs, renew) == []
        severed = sum(transport.severed for transport in network.transports.values())
        assert severed >= 9, "at each renewal there was a connection to break"
    finally:
        for agent in agents.values():
            agent.close()


def record(agent: Agent, n: int) -> MemberRecord:
    return MemberRecord(
        name=agent.name, id=n, address=agent.address, incarnation=n + 1, state=MemberState.READY
    )


def wait_for_progress(made: dict[str, int]) -> None:
    before = dict(made)
    deadline = time.monotonic() + PATIENCE
    while any(made[name] < before[name] + 5 for name in made):
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_an_established_connection_outlives_the_files_it_was_made_with(
    cluster: LocalCluster, network: FaultyTransport, tmp_path: Path
) -> None:
    a = cluster.agent("a")
    assert a.rpc_sync("b", echo, (1,), timeout=PATIENCE) == 1
    write(tmp_path, issue())
    assert a.rpc_sync("b", echo, (2,), timeout=PATIENCE) == 2
    assert network.connections == 1
    assert cluster.agent("b").rpc_sync("a", echo, (3,), timeout=PATIENCE) == 3, (
        "new ones are by the new files"
    )

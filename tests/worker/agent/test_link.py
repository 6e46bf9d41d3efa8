"""What callers see of connections that break, peers that go, and each other."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rpcgroup.agent.call import Call
from rpcgroup.agent.options import AgentOptions
from rpcgroup.agent.pool import BASE_THREADS
from rpcgroup.errors import CallTimeoutError, PeerUnreachableError, RpcGroupError
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.faults import Cut, FaultyTransport
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.transport.tcp import TcpTransport
from rpcgroup.wire.forms import NOTHING, Encoded
from rpcgroup.wire.frames import pack_frame

PATIENCE = 60.0
LASTING = AgentOptions(suspicion=PATIENCE, resume_window=2 * PATIENCE)
"""Reconnecting takes as long as it takes: the machine may be loaded."""

runs: Counter[Any] = Counter()
gates: dict[str, Future[Any]] = {}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    runs.clear()
    gates.clear()
    yield


def count(mark: Any, value: Any) -> Any:
    runs[mark] += 1
    return value


def count_slowly(mark: Any, value: Any) -> Any:
    runs[mark] += 1
    threading.Event().wait(0.003)
    return value


def echo(value: Any) -> Any:
    return value


@async_execution
def when_opened(gate: str) -> Future[Any]:
    runs[gate] += 1
    return gates[gate]


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


def random_cuts(seed: int, smallest: int, largest: int) -> Iterator[Cut]:
    """The first connection lives until the test breaks it; each later one for a random number of bytes."""
    yield Cut()
    chance = random.Random(seed)
    while True:
        size = int(smallest * (largest / smallest) ** chance.random())
        yield Cut(sent=size) if chance.random() < 0.5 else Cut(received=size)


@pytest.mark.parametrize("inner", [MemoryTransport, TcpTransport], ids=["memory", "tcp"])
@pytest.mark.parametrize("kind", ["sync", "async", "threads", "large", "slow"])
def test_calls_survive_connections_that_break_in_the_middle_of_frames(inner: Any, kind: str) -> None:
    """Every call runs exactly once and gives its own value, whatever breaks, and wherever."""
    seed = random.SystemRandom().randrange(2**32)
    largest = 3 << 20 if kind == "large" else 30_000
    network = FaultyTransport(inner(), random_cuts(seed, 300, largest))
    goal = {"sync": 120, "async": 60, "threads": 80, "large": 25, "slow": 25}[kind]
    with LocalCluster("ab", transport=network, options=LASTING) as cluster:
        a = cluster.agent("a")
        a.rpc_sync("b", echo, (0,))
        network.sever(cluster.address("b"))
        made = itertools.count()

        def one() -> None:
            mark = next(made)
            assert a.rpc_sync("b", count, (mark, ("value", mark))) == ("value", mark)

        def batch() -> None:
            marks = list(itertools.islice(made, 100))
            futures = [a.rpc_async("b", count, (mark, "x" * (mark % 500))) for mark in marks]
            assert [len(future.wait()) for future in futures] == [mark % 500 for mark in marks]

        def large() -> None:
            mark = next(made)
            value = torch.full((50_000,), mark)
            future = a.rpc_async("b", count, (next(made), "beside"))
            assert torch.equal(a.rpc_sync("b", count, (mark, value)), value)
            assert future.wait() == "beside"

        def slow() -> None:
            marks = list(itertools.islice(made, 8))
            futures = [a.rpc_async("b", count_slowly, (mark, "x" * 100 * mark)) for mark in marks]
            assert [len(future.wait()) for future in futures] == [100 * mark for mark in marks]

        def threads() -> None:
            together = [threading.Thread(target=one) for _ in range(8)]
            for thread in together:
                thread.start()
            for thread in together:
                thread.join(PATIENCE)
                assert not thread.is_alive(), f"seed {seed}"

        step = {"sync": one, "async": batch, "threads": threads, "large": large, "slow": slow}[kind]
        while network.severed < goal:
            step()
        total = next(made)
        assert len(runs) == total, f"seed {seed}"
        assert set(runs.values()) == {1}, f"seed {seed}: {runs.most_common(3)}"


@pytest.mark.parametrize("direction", ["sent", "received"])
def test_connections_that_break_at_every_byte_of_a_call(direction: str) -> None:
    """One call for each place where its connection can break, the handshake of the reconnection included."""
    network = FaultyTransport(MemoryTransport(), itertools.chain([Cut()], _walk(direction)))
    with LocalCluster("ab", transport=network, options=LASTING) as cluster:
        a = cluster.agent("a")
        a.rpc_sync("b", count, (0, 0))
        network.sever(cluster.address("b"))
        mark = 0
        while network.severed < 250:
            mark += 1
            assert a.rpc_sync("b", count, (mark, mark)) == mark
    assert set(runs.values()) == {1}


def _walk(direction: str) -> Iterator[Cut]:
    for size in itertools.count(1, 7):
        yield Cut(**{direction: size % 1500 + 1})


def test_answers_that_were_on_their_way_are_sent_again() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("ab", transport=network, options=LASTING) as cluster:
        a = cluster.agent("a")
        gates["g"] = Future()
        futures = [a.rpc_async("b", when_opened, ("g",)) for _ in range(50)]
        until(lambda: runs["g"] == 50)
        network.sever(cluster.address("b"))
        gates["g"].set_result(torch.ones(100_000))
        assert all(int(future.wait()[-1]) == 1 for future in futures)
        assert runs["g"] == 50


def test_a_first_connection_that_breaks_is_tried_again() -> None:
    network = FaultyTransport(MemoryTransport(), [Cut(sent=100), Cut(received=100), Cut(sent=0)])
    with LocalCluster("ab", transport=network, options=LASTING) as cluster:
        assert cluster.agent("a").rpc_sync("b", count, (1, 2)) == 2
    assert runs == {1: 1}
    assert network.severed == 3


def test_a_repair_stands_behind_no_function() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("ab", transport=network, options=LASTING) as cluster:
        a, gate = cluster.agent("a"), threading.Event()
        assert a.rpc_sync("b", count, (1, 1)) == 1
        for agent in (a, cluster.agent("b")):
            agent.pool.grow = lambda: None  # type: ignore[method-assign]
            for _ in range(2 * BASE_THREADS):
                agent.pool.submit(lambda: gate.wait(PATIENCE) and None)
        network.sever(cluster.address("b"))
        assert a.rpc_sync("b", count, (2, 2)) == 2
        assert runs == {1: 1, 2: 1}
        gate.set()


def test_a_held_back_connection_delays_and_loses_nothing() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("ab", transport=network, options=LASTING) as cluster:
        a = cluster.agent("a")
        a.rpc_sync("b", echo, (0,))
        network.hold(cluster.address("b"))
        threads = [threading.Thread(target=a.rpc_sync, args=("b", count, (n, n))) for n in range(4)]
        for thread in threads:
            thread.start()
        with pytest.raises(CallTimeoutError):
            a.rpc_async("b", count, (99, 99), timeout=0.05).wait()
        network.restore(cluster.address("b"))
        for thread in threads:
            thread.join(PATIENCE)
        assert a.rpc_sync("b", count, (5, 5)) == 5
        assert {mark: runs[mark] for mark in range(4)} == dict.fromkeys(range(4), 1)
        assert runs[99] <= 1


# A peer that is gone.


def test_a_peer_whose_port_is_closed_is_unreachable_at_once() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("abc", transport=network, options=LASTING) as cluster:
        a = cluster.agent("a")
        gates["g"] = Future()
        pending = [a.rpc_async("b", when_opened, ("g",)) for _ in range(20)]
        until(lambda: runs["g"] == 20)
        address = cluster.address("b")
        network.refuse(address)
        network.sever(address)
        for future in pending:
            with pytest.raises(PeerUnreachableError) as raised:
                future.wait()
            assert f"b at {address} was lost: the connection broke" in str(raised.value)
            assert "no process listens there any more" in str(raised.value)
        for call in (a.rpc_sync, a.rpc_async, a.remote):
            with pytest.raises(
                PeerUnreachableError, match=r"b (at .* cannot be reached: connection refused|has died)"
            ):
                call("b", echo, (1,))
        assert a.rpc_sync("c", echo, (1,)) == 1, "others are undisturbed"
        network.restore(address)
        assert a.rpc_sync("b", echo, (2,)) == 2, "and it may come back"
        gates["g"].set_result(1)


@pytest.mark.parametrize("how", ["leader", "follower", "future", "callback"])
def test_a_host_that_falls_silent_is_given_up(how: str) -> None:
    network = FaultyTransport(MemoryTransport())
    options = AgentOptions(suspicion=0.1, silence=0.05)
    with LocalCluster("ab", transport=network, options=options) as cluster:
        a = cluster.agent("a")
        gates["g"] = Future()
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                a.rpc_sync("b", when_opened, ("g",), timeout=0)
            except PeerUnreachableError as exc:
                errors.append(exc)

        threads = [threading.Thread(target=wait) for _ in range({"leader": 1, "follower": 3}.get(how, 0))]
        for thread in threads:
            thread.start()
        futures = [a.rpc_async("b", when_opened, ("g",), timeout=0) for _ in range(2)]
        if how == "callback":
            for future in futures:
                future.add_done_callback(errors.append)  # type: ignore[arg-type]
        until(lambda: runs["g"] == len(threads) + 2)
        network.silence(cluster.address("b"))
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        if how == "callback":
            until(lambda: len(errors) == 2)
        for future in futures:
            with pytest.raises(PeerUnreachableError, match="b at memory://"):
                future.wait()
        gates["g"].set_result(1)


def test_a_host_that_falls_silent_is_noticed_for_those_who_listen() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("ab", transport=network, options=AgentOptions(suspicion=0.1, silence=0.05)) as cluster:
        a = cluster.agent("a")
        lost: list[BaseException] = []
        a.rpc_sync("b", echo, (1,))
        a._link("b").listen(lost.append)
        until(lambda: a.monitor.cold)
        network.silence(cluster.address("b"))
        until(lambda: lost)
        assert isinstance(lost[0], PeerUnreachableError)


def test_a_caller_that_comes_back_too_late_is_told_so() -> None:
    """The callee has forgotten what it ran: better an error than a second run."""
    network = FaultyTransport(MemoryTransport())
    options = AgentOptions(suspicion=PATIENCE, resume_window=0.05)
    with LocalCluster("ab", transport=network, options=options) as cluster:
        a, b = cluster.agent("a"), cluster.agent("b")
        gates["g"] = Future()
        future = a.rpc_async("b", when_opened, ("g",))
        until(lambda: runs["g"] == 1)
        network.silence(cluster.address("b"))
        a._link("b").interrupt()
        until(lambda: not b.connections.sessions())
        network.restore(cluster.address("b"))
        with pytest.raises(PeerUnreachableError, match="this channel is not known here any more"):
            future.wait()
        assert runs["g"] == 1
        assert a.rpc_sync("b", echo, (1,)) == 1
        gates["g"].set_result(1)


def test_a_peer_that_breaks_the_protocol_is_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    with LocalCluster("ab") as cluster:
        a, b = cluster.agent("a"), cluster.agent("b")
        a.rpc_sync("b", echo, (1,))
        a._link("b").channel.queue(b"\xff" * 100)
        with pytest.raises(PeerUnreachableError):
            a.rpc_sync("b", echo, (2,))
        (message,) = [r.getMessage() for r in caplog.records if "broke the protocol" in r.getMessage()]
        assert message.startswith("a broke the protocol and is disconnected: frame of 4294967295 bytes")
        assert a.rpc_sync("b", echo, (3,)) == 3
        assert b.rpc_sync("a", echo, (4,)) == 4


def test_an_answer_that_breaks_the_protocol_fails_the_calls() -> None:
    with LocalCluster("ab") as cluster:
        a, b = cluster.agent("a"), cluster.agent("b")
        gates["g"] = Future()
        future = a.rpc_async("b", when_opened, ("g",))
        until(lambda: runs["g"] == 1)
        (session,) = b.connections.sessions()
        session.channel.queue(b"\xff" * 100)
        session.channel.flush()
        with pytest.raises(PeerUnreachableError, match="b broke the protocol: frame of 4294967295 bytes"):
            future.wait()
        gates["g"].set_result(1)


@pytest.mark.parametrize("kind", [3, 5, 7, 11, 15, 32, 33])
def test_a_request_body_that_is_garbage_is_answered_with_an_error(kind: int) -> None:
    with LocalCluster("ab") as cluster:
        a = cluster.agent("a")
        a.rpc_sync("b", echo, (1,))
        link = a._link("b")
        for flags in range(8):
            link.channel.queue(pack_frame(kind, flags, 10_000 + flags, 77, 0, 0, b"\x93garbage" * 9))
        link.channel.flush()
        assert a.rpc_sync("b", echo, (2,)) == 2


def test_an_unknown_message_type_is_refused_by_name() -> None:
    with LocalCluster("ab") as cluster:
        a = cluster.agent("a")
        a.rpc_sync("b", echo, (1,))
        for kind, name in ((200, "number 200"), (12, "RREF_ACK")):
            call = a._link("b").send(kind, 0, (), 0, PATIENCE, Call())
            with pytest.raises(RpcGroupError, match=rf"message type {name} is not handled") as raised:
                call.wait()
            assert "On WorkerInfo" in str(raised.value)


def test_what_is_posted_is_not_answered_and_its_loss_is_told_to_those_who_listen() -> None:
    with LocalCluster("ab", transport="tcp", options=AgentOptions(suspicion=0.5)) as cluster:
        a = cluster.agent("a")
        a.rpc_sync("b", echo, (1,))
        link = a._link("b")
        arrived: list[Any] = []
        cluster.agent("b").reactor._handlers[77] = lambda session, frame: arrived.append(frame)
        lost: list[BaseException] = []
        unheard: list[BaseException] = []
        link.post(77, Encoded(NOTHING, b"", []))
        for listener in (lost.append, unheard.append):
            link.listen(listener)
        link.listeners.pop(unheard.append)
        until(lambda: arrived)
        assert not link.pending and not lost
        cluster.crash("b")
        until(lambda: lost)
        assert isinstance(lost[0], PeerUnreachableError) and not unheard
        link.listen(unheard.append)  # told at once
        until(lambda: unheard)
        with pytest.raises(RpcGroupError):
            link.post(77, Encoded(NOTHING, b"", []))


# Callers beside each other.


def test_a_waiting_caller_takes_over_from_one_that_is_done() -> None:
    """The first reads for all; whose own answer is there hands the reading on."""
    with LocalCluster("ab") as cluster:
        a = cluster.agent("a")
        results: Counter[str] = Counter()
        gates.update({f"g{n}": Future() for n in range(20)})

        def wait(gate: str) -> None:
            results[a.rpc_sync("b", when_opened, (gate,), timeout=PATIENCE)] += 1

        threads = [threading.Thread(target=wait, args=(gate,)) for gate in gates]
        for thread in threads:
            thread.start()
        until(lambda: len(runs) == 20)
        for gate, future in gates.items():
            future.set_result(gate)
            until(lambda gate=gate: results[gate])  # type: ignore[misc]
        for thread in threads:
            thread.join(PATIENCE)


def test_leaders_and_followers_in_every_order_miss_no_wake_up() -> None:
    """Published first, then looked again: a caller that goes to sleep is always seen."""
    with LocalCluster("ab") as cluster:
        a = cluster.agent("a")
        wrong: list[Any] = []

        def calls(seed: int) -> None:
            for n in range(300):
                if a.rpc_sync("b", echo, ((seed, n),), timeout=PATIENCE) != (seed, n):
                    wrong.append((seed, n))

        threads = [threading.Thread(target=calls, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert not wrong


def test_a_function_is_defined_before_any_thread_names_its_number() -> None:
    with LocalCluster("ab") as cluster:
        a = cluster.agent("a")
        for turn, function in enumerate(_many_functions(100)):
            start = threading.Barrier(4)
            results: list[int] = []

            def call(function: Any = function, start: Any = start, results: list[int] = results) -> None:
                start.wait(PATIENCE)
                results.append(a.rpc_sync("b", function, (1,)))

            threads = [threading.Thread(target=call) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert results == [1 + turn] * 4


def _many_functions(count: int) -> list[Any]:
    """Module-level ones: only those are numbered."""
    for n in range(count):
        exec(f"def generated_{n}(x): return x + {n}", globals())
    return [globals()[f"generated_{n}"] for n in range(count)]


def test_large_and_small_answers_beside_each_other_with_a_slow_reader() -> None:
    """A reader that does not read while it sends would deadlock with its mirror image."""
    with LocalCluster("ab") as cluster:
        tensor = torch.ones(500_000)
        done: Counter[str] = Counter()

        def calls(here: str, there: str) -> None:
            for _ in range(6):
                futures = [cluster.agent(here).rpc_async(there, echo, (tensor,)) for _ in range(4)]
                assert all(future.wait().shape == tensor.shape for future in futures)
                done[here] += 1

        threads = [
            threading.Thread(target=calls, args=pair) for pair in (("a", "b"), ("b", "a")) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert done == {"a": 12, "b": 12}


def test_what_was_sent_is_not_kept_once_it_has_arrived() -> None:
    with LocalCluster("ab") as cluster:
        a, b = cluster.agent("a"), cluster.agent("b")
        for _ in range(20):
            a.rpc_sync("b", echo, (torch.ones(100_000),))
        channels = [a._link("b").channel, *[session.channel for session in b.connections.sessions()]]
        until(lambda: all(channel.unacknowledged == 0 for channel in channels))

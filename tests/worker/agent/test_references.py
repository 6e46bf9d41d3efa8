"""RRefs over real agents: created, passed on in all ways, used, let go of, and what deaths do to them."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.options import AgentOptions
from rpcgroup.errors import (
    CallTimeoutError,
    OwnerDiedError,
    RRefCreationTimeoutError,
    RRefError,
    SerializationError,
)
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.rref.rref import RRef
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.faults import Cut, FaultyTransport
from rpcgroup.transport.memory import MemoryTransport

PATIENCE = 30.0

cluster_of_test: LocalCluster
gates: dict[str, Future[Any]] = {}
kept: dict[str, Any] = {}


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    global cluster_of_test
    gates.clear()
    kept.clear()
    with LocalCluster("abcd") as cluster_of_test:
        yield cluster_of_test
        kept.clear()
        gc.collect()
        until(lambda: not leaks(cluster_of_test))


@pytest.fixture
def a(cluster: LocalCluster) -> Agent:
    return cluster.agent("a")


def leaks(cluster: LocalCluster) -> list[str]:
    gc.collect()  # an exception's traceback may hold a reference
    for name in cluster:
        cluster.agent(name).references.reap()
    return [line for name in cluster for line in cluster.agent(name).references.leaks()]


def owned(cluster: LocalCluster, name: str) -> int:
    return cluster.agent(name).references.counts().owner_rrefs


def make(value: Any) -> Any:
    return value


def fail(text: str) -> None:
    raise ValueError(text)


@async_execution
def when_opened(gate: str) -> Future[Any]:
    return gates[gate]


class Counter:
    """A user's object on the owner."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, n: int) -> int:
        self.value += n
        return self.value

    def fail(self) -> None:
        raise ValueError("in a method")

    @async_execution
    def later(self, gate: str) -> Future[Any]:
        return gates[gate]


def to_here(reference: RRef[Any]) -> Any:
    return reference.to_here()


def local_value(reference: RRef[Any]) -> Any:
    return reference.local_value()


def give_back(reference: RRef[Any]) -> RRef[Any]:
    return reference


def keep(key: str, reference: Any) -> None:
    kept[key] = reference


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


# Making and using one.


def test_remote_and_to_here(a: Agent) -> None:
    reference = a.remote("b", make, (torch.ones(3),))
    assert torch.equal(reference.to_here(), torch.ones(3))
    assert not reference.is_owner()
    assert reference.owner_name() == "b"
    assert reference.owner().name == "b"
    assert reference.owner().id == cluster_of_test["b"].me.id
    until(reference.confirmed_by_owner)


def test_remote_to_oneself(a: Agent) -> None:
    value = [1]
    reference = a.remote("a", make, (value,))
    there = reference.to_here()
    assert there == [1]
    assert reference.is_owner()
    assert reference.owner_name() == "a"
    assert reference.local_value() is there is reference.to_here(), "on the owner it is the object itself"


def test_a_reference_to_a_value_of_ones_own(a: Agent) -> None:
    counter = Counter(5)
    reference = a.references.create(counter)
    assert reference.local_value() is reference.to_here() is counter
    assert reference.rpc_sync().add(1) == 6
    assert owned(cluster_of_test, "a") == 0, "known only once it is shared"
    assert a.rpc_sync("b", to_here, (reference,)).value == 6
    assert owned(cluster_of_test, "a") <= 1


def test_to_here_is_a_copy_and_local_value_elsewhere_an_error(a: Agent) -> None:
    reference = a.remote("b", make, ([1],))
    reference.to_here().append(2)
    assert reference.to_here() == [1]
    with pytest.raises(RRefError, match="can't call localValue"):
        reference.local_value()
    assert a.rpc_sync("b", local_value, (reference,)) == [1]


def test_to_here_waits_for_the_value(a: Agent) -> None:
    gates["g"] = Future()
    reference = a.remote("b", when_opened, ("g",))
    with pytest.raises(CallTimeoutError, match="set timeout"):
        reference.to_here(timeout=0.05)
    gates["g"].set_result("there")
    assert reference.to_here() == "there"


def test_a_value_that_could_not_be_made(a: Agent) -> None:
    for target in ("b", "a"):
        reference = a.remote(target, fail, ("why",))
        for _ in range(2):
            with pytest.raises(ValueError, match="why") as raised:
                reference.to_here()
            assert "On WorkerInfo" in str(raised.value)
            assert "passed on by" not in str(raised.value), "it comes from where it was raised"
    with pytest.raises(ValueError, match="why"):
        a.rpc_sync("b", to_here, (a.remote("c", fail, ("why",)),))


def test_the_three_proxies(a: Agent) -> None:
    reference = a.remote("b", Counter, (10,))
    assert reference.rpc_sync().add(1) == 11
    assert reference.rpc_async().add(1).wait() == 12
    assert reference.remote().add(1).to_here() == 13
    for call in (
        reference.rpc_sync().fail,
        lambda: reference.rpc_async().fail().wait(),
        lambda: reference.remote().fail().to_here(),
    ):
        with pytest.raises(ValueError, match="in a method"):
            call()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        reference.rpc_sync().nonsense()


def test_proxies_of_a_value_that_is_not_there_yet(a: Agent) -> None:
    gates["g"] = Future()
    reference = a.remote("b", when_opened, ("g",))
    futures = [reference.rpc_async().add(1) for _ in range(20)]
    made = [reference.remote().add(100) for _ in range(3)]
    gates["g"].set_result(Counter(0))
    assert sorted(future.wait() % 100 for future in futures) == list(range(1, 21))
    assert len({ref.to_here() for ref in made}) == 3


def test_a_proxy_of_an_asynchronous_method(a: Agent) -> None:
    reference = a.remote("b", Counter)
    gates["g"] = Future()
    future = reference.rpc_async().later("g")
    gates["g"].set_result(5)
    assert future.wait() == 5


def test_a_proxy_with_a_timeout(a: Agent) -> None:
    reference = a.remote("b", Counter)
    gates["g"] = Future()
    with pytest.raises(CallTimeoutError, match=r"\(50 ms\)"):
        reference.rpc_sync(timeout=0.05).later("g")
    gates["g"].set_result(1)


def test_a_remote_that_fails_to_be_sent(a: Agent) -> None:
    with pytest.raises(SerializationError):
        a.remote("b", make, (threading.Lock(),))
    until(lambda: not leaks(cluster_of_test))


def raised_by(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except Exception as exc:
        return exc
    return None


def test_a_remote_that_times_out_raises_at_every_later_use() -> None:
    network = FaultyTransport(MemoryTransport())
    options = AgentOptions(silence=100 * PATIENCE)
    with LocalCluster("abc", transport=network, options=options) as cluster:
        a = cluster.agent("a")
        a.rpc_sync("b", make, (1,))
        network.silence(cluster.address("b"))
        reference = a.remote("b", Counter, timeout=0.05)
        until(lambda: raised_by(lambda: a.references.require_usable(reference)))  # told by a callback
        for use in (
            reference.to_here,
            lambda: reference.rpc_sync().add(1),
            lambda: reference.remote().add(1),
            lambda: a.rpc_sync("c", to_here, (reference,)),
        ):
            with pytest.raises(RRefCreationTimeoutError, match=r"timeout|timed out"):
                use()


def test_it_cannot_be_pickled_by_hand(a: Agent) -> None:
    for reference in (a.remote("b", make, (1,)), a.references.create(1)):
        with pytest.raises(RRefError, match="only be pickled when using RPC"):
            pickle.dumps(reference)


# Passing it on.


def test_from_its_owner_to_a_user(a: Agent) -> None:
    counter = Counter(1)
    reference = a.references.create(counter)
    assert a.rpc_sync("b", to_here, (reference,)).value == 1
    a.rpc_sync("b", keep, ("k", reference))
    assert owned(cluster_of_test, "a") == 1
    del reference
    gc.collect()
    assert kept["k"].rpc_sync().add(2) == 3, "the user's fork keeps the value"
    assert counter.value == 3


def test_from_a_user_to_its_owner(a: Agent) -> None:
    reference = a.remote("b", Counter, (1,))
    assert a.rpc_sync("b", local_value, (reference,)).value == 1
    a.rpc_sync("b", keep, ("k", reference))
    assert kept["k"].is_owner()
    assert kept["k"].local_value() is kept["k"].to_here()


def test_from_a_user_to_a_user(a: Agent) -> None:
    reference = a.remote("b", Counter, (1,))
    a.rpc_sync("c", keep, ("c", reference))
    assert kept["c"].confirmed_by_owner(), "a user function sees confirmed references only"
    assert cluster_of_test.agent("c").rpc_sync("d", to_here, (kept["c"],)).value == 1
    del reference
    gc.collect()
    assert kept["c"].rpc_sync().add(1) == 2
    assert owned(cluster_of_test, "b") == 1


def test_in_results_nests_closures_and_keyword_arguments(a: Agent) -> None:
    reference = a.remote("b", make, (5,))
    returned = a.rpc_sync("c", give_back, (reference,))
    assert returned.to_here() == 5
    nest = a.rpc_sync("c", make, ({"x": [reference, reference], "y": (1, torch.ones(2))},))
    assert nest["x"][0] is nest["x"][1]
    assert nest["x"][0].to_here() == 5
    assert a.rpc_sync("c", lambda x: reference.to_here() + x, (1,)) == 6
    assert a.rpc_sync("c", lambda *, ref: ref.to_here(), (), {"ref": reference}) == 5
    assert a.remote("c", give_back, (reference,)).to_here().to_here() == 5
    assert a.rpc_async("c", give_back, (reference,)).wait().to_here() == 5


def test_a_reference_to_a_reference(a: Agent) -> None:
    inner = a.remote("b", make, (5,))
    outer = a.remote("c", give_back, (inner,))
    del inner
    gc.collect()
    assert outer.to_here().to_here() == 5


def test_a_chain_of_users(cluster: LocalCluster, a: Agent) -> None:
    reference = a.remote("b", make, (5,))
    names = ["a", "c", "d"]
    for n in range(9):
        here, there = names[n % 3], names[(n + 1) % 3]
        cluster.agent(here).rpc_sync(there, keep, (there, reference))
        reference = kept[there]
    kept.clear()
    assert reference.to_here() == 5


def test_many_at_once_from_many_threads(cluster: LocalCluster, a: Agent) -> None:
    references = [a.remote("b", Counter, (n,)) for n in range(30)]
    wrong: list[Any] = []

    def use(here: str) -> None:
        for n, reference in enumerate(references):
            if a.rpc_sync(here, to_here, (reference,)).value != n:
                wrong.append(n)
            if a.rpc_sync(here, give_back, (reference,)).to_here().value != n:
                wrong.append(n)

    threads = [threading.Thread(target=use, args=("cd"[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 2)
        assert not thread.is_alive()
    assert not wrong


# Letting it go.


def test_the_value_goes_with_the_last_reference(cluster: LocalCluster, a: Agent) -> None:
    reference = a.remote("b", make, (torch.ones(10),))
    reference.to_here()
    assert owned(cluster, "b") == 1
    a.rpc_sync("c", keep, ("c", reference))
    del reference
    gc.collect()
    a.references.reap()
    assert kept["c"].to_here().sum() == 10
    assert owned(cluster, "b") == 1
    kept.clear()
    gc.collect()
    until(lambda: not leaks(cluster) and owned(cluster, "b") == 0)


def test_a_reference_that_is_dropped_at_once(cluster: LocalCluster, a: Agent) -> None:
    for _ in range(50):
        a.remote("b", make, (1,))
        a.rpc_async("c", to_here, (a.remote("b", make, (2,)),))
    gc.collect()
    until(lambda: not leaks(cluster) and owned(cluster, "b") == 0)


def test_references_in_a_garbage_cycle(cluster: LocalCluster, a: Agent) -> None:
    for _ in range(10):
        cycle: list[Any] = [a.remote("b", make, (1,))]
        cycle.append(cycle)
    del cycle
    gc.collect()
    until(lambda: not leaks(cluster) and owned(cluster, "b") == 0)


def test_a_call_that_cannot_be_sent_takes_its_references_back(cluster: LocalCluster, a: Agent) -> None:
    reference, mine = a.remote("b", make, (1,)), a.references.create(2)
    reference.to_here()
    for _ in range(3):
        with pytest.raises(SerializationError):
            a.rpc_sync("c", make, (reference, mine, threading.Lock()))
        with pytest.raises(SerializationError):
            a.remote("c", make, (mine, reference, threading.Lock()))
    del reference, mine
    gc.collect()
    until(lambda: not leaks(cluster))


def test_a_call_whose_second_reference_cannot_be_used(cluster: LocalCluster, a: Agent) -> None:
    good = a.remote("b", make, (1,))
    good.to_here()
    bad = a.remote("d", make, (1,))
    bad.to_here()
    cluster.evict("d")
    until(lambda: a.references.is_dead(bad._user.owner))  # type: ignore[union-attr]
    for _ in range(3):
        with pytest.raises(RRefError):
            a.rpc_sync("c", make, ((good, bad),))
    good = bad = None  # type: ignore[assignment]
    gc.collect()
    until(lambda: not leaks(cluster) and owned(cluster, "b") == 0)


def test_arguments_of_a_call_that_is_cancelled_are_let_go(cluster: LocalCluster, a: Agent) -> None:
    gates["g"] = Future()
    reference = a.remote("b", make, (1,))
    future = a.rpc_async("c", lambda r, g: None, (reference, "g"))
    future.cancel()
    gates["g"].set_result(None)
    del reference, future
    gc.collect()
    until(lambda: not leaks(cluster))


def test_an_answer_with_references_that_nobody_waits_for_any_more(cluster: LocalCluster, a: Agent) -> None:
    gates["g"] = Future()
    future = a.rpc_async("c", when_opened, ("g",), timeout=0.02)
    with pytest.raises(CallTimeoutError):
        future.wait()
    gates["g"].set_result(cluster.agent("c").references.create(Counter()))
    gates.clear()
    del future
    gc.collect()
    until(lambda: not leaks(cluster))


# Deaths.


def test_a_dead_owner_ends_every_use_at_once(cluster: LocalCluster, a: Agent) -> None:
    gates["g"] = Future()
    reference, pending = a.remote("d", Counter), a.remote("d", when_opened, ("g",))
    reference.to_here()
    a.rpc_sync("c", keep, ("c", reference))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            pending.to_here(timeout=0)
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: a.stats()["pending"])
    cluster.evict("d")
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert isinstance(errors[0], (OwnerDiedError, RRefError, ConnectionError))
    until(lambda: a.references.is_dead(reference._user.owner))  # type: ignore[union-attr]
    for use in (
        reference.to_here,
        lambda: reference.rpc_sync().add(1),
        lambda: reference.rpc_async().add(1),
        lambda: reference.remote().add(1),
        lambda: a.rpc_sync("c", to_here, (reference,)),
    ):
        with pytest.raises(OwnerDiedError, match="d"):
            use()
    until(lambda: cluster.agent("c").references.is_dead(kept["c"]._user.owner))
    with pytest.raises(OwnerDiedError):
        kept["c"].to_here()
    gates["g"].set_result(1)


def test_a_dead_users_forks_are_reclaimed(cluster: LocalCluster, a: Agent) -> None:
    d = cluster.agent("d")
    mine = a.references.create(Counter())
    a.rpc_sync("d", keep, ("d", mine))
    kept["made"] = d.remote("b", Counter)
    kept["made"].to_here()
    assert owned(cluster, "a") == owned(cluster, "b") == 1
    cluster.evict("d")
    until(lambda: owned(cluster, "a") == owned(cluster, "b") == 0)


def test_what_a_dead_user_had_handed_on_lives(cluster: LocalCluster, a: Agent) -> None:
    d = cluster.agent("d")
    reference = d.remote("b", Counter, (7,))
    d.rpc_sync("c", keep, ("c", reference))
    cluster.evict("d")
    until(lambda: cluster["b"].members() == cluster["c"].members() and len(cluster["b"].members()) == 3)
    assert kept["c"].rpc_sync().add(1) == 8
    assert owned(cluster, "b") == 1
    del reference


# Faults and the end.


def test_connections_that_break_lose_no_reference() -> None:
    def cuts() -> Iterator[Cut]:
        for n in range(400):
            yield Cut(**{("sent", "received")[n % 2]: 700 + (n * 397) % 4000})

    network = FaultyTransport(MemoryTransport(), cuts())
    with LocalCluster("abc", transport=network) as cluster:
        a = cluster.agent("a")
        for n in range(60):
            reference = a.remote("b", Counter, (n,))
            assert a.rpc_sync("c", to_here, (reference,)).value == n
            assert a.rpc_sync("c", give_back, (reference,)).rpc_sync().add(1) == n + 1
        del reference
        gc.collect()
        until(lambda: not leaks(cluster) and owned(cluster, "b") == 0)
        assert network.severed > 20


def test_a_graceful_end_leaves_no_reference_behind() -> None:
    with LocalCluster("abc") as cluster:
        a = cluster.agent("a")
        references = [a.remote("b", Counter) for _ in range(20)]
        for reference in references:
            a.rpc_sync("c", keep, (str(id(reference)), reference))
        cluster.leave("a")
        cluster.leave("c")
        until(lambda: owned(cluster, "b") == 0)
        assert not cluster.agent("b").references.leaks()
        with pytest.raises(RuntimeError):
            references[0].to_here()
        kept.clear()


def test_references_die_quietly_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with LocalCluster("ab") as cluster:
        references = [cluster.agent("a").remote("b", Counter) for _ in range(5)]
        references[0].to_here()
    del references
    gc.collect()
    assert not [r for r in caplog.records if r.levelname == "ERROR"]

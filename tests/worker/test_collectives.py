"""Gatherings among the members of a group in one process, over the memory transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rpcgroup.errors import GroupError, PeerUnreachableError
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import recording_device

PATIENCE = 30.0
SHORT = 0.2


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster("abcd") as cluster:
        yield cluster


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


class Callers:
    def __init__(self, cluster: LocalCluster, threads: ThreadPoolExecutor, how: str) -> None:
        self._cluster = cluster
        self._threads = threads
        self._how = how

    def __call__(self, names: str, among: str = "abcd", timeout: float = 0.0) -> list[Future[dict[str, Any]]]:
        return [
            self._threads.submit(
                getattr(self._cluster[name].collectives, self._how), name.upper(), among, timeout
            )
            for name in names
        ]


@pytest.fixture
def gather(cluster: LocalCluster, threads: ThreadPoolExecutor) -> Callers:
    return Callers(cluster, threads, "all_gather")


@pytest.fixture
def meet(cluster: LocalCluster, threads: ThreadPoolExecutor) -> Callers:
    return Callers(cluster, threads, "meet")


def results(futures: list[Future[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [future.result(PATIENCE) for future in futures]


ALL = {"a": "A", "b": "B", "c": "C", "d": "D"}


def test_everybody_gets_what_everybody_gave(gather: Callers) -> None:
    assert results(gather("abcd")) == [ALL] * 4


def test_nobody_gets_anything_before_the_last_has_come(cluster: LocalCluster, gather: Callers) -> None:
    early = gather("abc")
    until(lambda: cluster["a"].collectives.guests == 2)
    assert not any(future.done() for future in early)
    assert results([*early, *gather("d")]) == [ALL] * 4
    assert cluster["a"].collectives.guests == 0


def test_again_and_again(gather: Callers) -> None:
    for _ in range(20):
        assert results(gather("abcd")) == [ALL] * 4


def test_some_of_the_members_and_all_of_them_at_once(gather: Callers) -> None:
    waiting = gather("abc")
    assert results(gather("bd", "bd")) == [{"b": "B", "d": "D"}] * 2
    assert results(gather("b", "b")) == [{"b": "B"}]
    assert results([*waiting, *gather("d")]) == [ALL] * 4


def test_a_fast_one_may_be_a_gathering_ahead(cluster: LocalCluster, threads: ThreadPoolExecutor) -> None:
    def twice(name: str) -> list[dict[str, Any]]:
        collectives = cluster[name].collectives
        return [collectives.all_gather(f"{name}{turn}", "abcd") for turn in range(2)]

    for got in [future.result(PATIENCE) for future in [threads.submit(twice, name) for name in "dcba"]]:
        assert got == [{name: f"{name}{turn}" for name in "abcd"} for turn in range(2)]


def test_only_among_others_is_no_gathering_of_mine(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="is not among them"):
        cluster["a"].collectives.all_gather(None, "bc")


@pytest.mark.parametrize("absent", ["a", "d"])
def test_who_does_not_come_in_time_is_named_to_all(gather: Callers, absent: str) -> None:
    for future in gather("abcd".replace(absent, ""), timeout=SHORT):
        with pytest.raises(GroupError, match=f"1 of 4 members did not come within 0.2 s: {absent}"):
            future.result(PATIENCE)


def test_a_leader_that_dies_is_an_error(cluster: LocalCluster, gather: Callers) -> None:
    waiting = gather("bcd")
    until(lambda: cluster["a"].collectives.guests == 3)
    cluster.evict("a")
    for future in waiting:
        assert isinstance(future.exception(PATIENCE), PeerUnreachableError | GroupError)


def test_a_member_that_dies_is_an_error_at_once(cluster: LocalCluster, gather: Callers) -> None:
    waiting = gather("abc")
    until(lambda: cluster["a"].collectives.guests == 2)
    cluster.evict("d")
    for future in waiting:
        error = future.exception(PATIENCE)
        assert isinstance(error, GroupError)
        assert "1 of 4 members did not come: d" in str(error)


def test_what_cannot_be_sent_is_told_to_who_gave_it(cluster: LocalCluster) -> None:
    with pytest.raises(TypeError):
        cluster["b"].collectives.all_gather(threading.Lock(), "abcd", timeout=SHORT)


def test_who_comes_too_late_is_told_at_once(gather: Callers) -> None:
    for future in gather("abc", timeout=SHORT):
        assert isinstance(future.exception(PATIENCE), GroupError)
    (late,) = gather("d")
    with pytest.raises(GroupError, match="1 of 4 members did not come: d"):
        late.result(PATIENCE)
    assert results(gather("abcd")) == [ALL] * 4


# Of those who live.
def test_a_meeting_is_a_gathering(meet: Callers) -> None:
    assert results(meet("abcd")) == [ALL] * 4


@pytest.mark.parametrize("dead", ["a", "b", "d", "ab", "abc", "bcd"])
def test_nobody_waits_for_the_dead(cluster: LocalCluster, meet: Callers, dead: str) -> None:
    alive = "".join(sorted(set("abcd") - set(dead)))
    for name in dead:
        cluster.evict(name)
    for got in results(meet(alive)):
        assert got == {name: name.upper() for name in alive}


@pytest.mark.parametrize("dead", ["a", "ab", "d"])
def test_nor_for_those_that_die_meanwhile(cluster: LocalCluster, meet: Callers, dead: str) -> None:
    alive = "".join(sorted(set("abcd") - set(dead)))
    waiting = meet(alive)
    until(lambda: dead == "d" or cluster["a"].collectives.guests == len(alive))
    for name in dead:
        cluster.evict(name)
    for got in results(waiting):
        assert got == {name: name.upper() for name in alive}


def test_nor_for_those_that_left(cluster: LocalCluster, meet: Callers) -> None:
    waiting = meet("acd")
    until(lambda: cluster["a"].collectives.guests == 2)
    cluster.leave("b", graceful=False)
    assert results(waiting) == [{"a": "A", "c": "C", "d": "D"}] * 3


def test_who_lives_and_does_not_come_is_named(meet: Callers) -> None:
    for future in meet("abc", timeout=SHORT):
        with pytest.raises(GroupError, match=r"1 of 4 members did not come within 0.2 s: d"):
            future.result(PATIENCE)


def test_tensors_on_devices_are_gathered_in_order(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gives one from a stream of its own, and uses all. The leader's device is busy until the leader waits."""
    one, two = torch.device("cuda", 0), torch.device("cuda", 1)
    maps = {
        "a": {"b": {"cuda:0": "cuda:1", "cuda:1": "cuda:0"}},
        "b": {"a": {"cuda:0": "cuda:1", "cuda:1": "cuda:0"}},
    }
    with recording_device(pool=32) as device, LocalCluster("ab", device_maps=maps) as cluster:
        held = device.hold(one)
        leader = threading.local()
        synchronize = device.synchronize

        def released(event: Any) -> None:
            if getattr(leader, "here", False):
                held.release()
            synchronize(event)

        monkeypatch.setattr(device, "synchronize", released)

        def give(name: str, where: torch.device, value: float) -> dict[str, list[float]]:
            leader.here = name == "a"
            with device.use([device.new_stream(one), device.new_stream(two)]):
                tensor = device.tensor([value], where)
                objects = cluster[name].collectives.all_gather(tensor, "ab", PATIENCE)
                used = {key: got + 1 for key, got in objects.items()}
                held.release()
                return {key: device.to_host(got).tolist() for key, got in used.items()}

        gathered = [threads.submit(give, *what) for what in (("a", one, 1.0), ("b", two, 2.0))]
        assert [each.result(PATIENCE) for each in gathered] == [{"a": [2.0], "b": [3.0]}] * 2

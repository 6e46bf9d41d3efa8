from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rpcgroup.cuda.inbound import Arrivals
from rpcgroup.cuda.outbound import Departure
from rpcgroup.errors import PeerUnreachableError
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import RecordingDevice, recording_device

SECONDS = 30.0
NAMES = ("a", "b", "c")
MAPS = {
    "a": {"b": {"cuda:0": "cuda:1"}, "c": {"cuda:0": "cuda:0"}},
    "b": {"a": {"cuda:0": "cuda:1"}, "c": {"cuda:1": "cuda:1"}},
    "c": {"a": {"cuda:1": "cuda:0"}, "b": {"cuda:0": "cuda:0"}},
}
MAPPED = [
    (me, to, int(source[-1])) for me, peers in MAPS.items() for to, map in peers.items() for source in map
]


def echo(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return condition()


@pytest.mark.parametrize("transport", ["memory", "tcp"])
def test_everybody_sends_to_everybody_and_all_pinned_memory_comes_back(transport: str) -> None:
    """More is under way at once than the pools hold, both ways on every connection."""
    wrong: list[object] = []

    def call(device: RecordingDevice, cluster: LocalCluster, me: str, to: str, index: int) -> None:
        for size in (10, 100_000, 9_000_000):
            sent = device.tensor(torch.full((size,), size % 251, dtype=torch.uint8), index)
            try:
                back = cluster.agent(me).rpc_sync(to, echo, (sent,), timeout=SECONDS)
                if back.device != sent.device or not torch.equal(back.cpu(), sent.cpu()):
                    wrong.append((me, to, size, back.device))
            except Exception as exc:
                wrong.append(exc)

    with recording_device() as device, LocalCluster(NAMES, transport=transport, device_maps=MAPS) as cluster:
        threads = [
            threading.Thread(target=call, args=(device, cluster, *one)) for one in MAPPED for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * SECONDS)
        assert not wrong
        pools = [cluster.agent(name).accelerator.pool for name in NAMES]
        assert wait_until(lambda: not any(pool.in_use for pool in pools)), [pool.in_use for pool in pools]


def total(tensors: list[torch.Tensor]) -> float:
    return float(sum(tensor.sum().item() for tensor in tensors))


def test_an_announcement_that_all_its_chunks_overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system does not run the thread that has read it for a while, so another one leads."""
    chunks = 100
    come: list[int] = []
    all_have_come = threading.Event()
    expect, on_chunk = Arrivals.expect, Arrivals.on_chunk

    def expect_late(arrivals: Arrivals, *args: Any) -> None:
        assert all_have_come.wait(SECONDS)
        expect(arrivals, *args)

    def count(arrivals: Arrivals, *args: Any) -> None:
        on_chunk(arrivals, *args)
        come.append(args[1])
        if len(come) == chunks:
            all_have_come.set()

    monkeypatch.setattr(Arrivals, "expect", expect_late)
    monkeypatch.setattr(Arrivals, "on_chunk", count)
    with recording_device() as device, LocalCluster(NAMES, transport="memory", device_maps=MAPS) as cluster:
        sent = [device.tensor(torch.ones(10)) for _ in range(chunks)]
        assert cluster.agent("a").rpc_sync("b", total, (sent,), timeout=SECONDS) == 10 * chunks


def test_a_transfer_to_a_peer_that_is_lost_ends_and_gives_its_memory_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = threading.Event()
    run = Departure.run
    monkeypatch.setattr(Departure, "run", lambda self, *args: (run(self, *args), ended.set()))
    with recording_device() as device, LocalCluster(NAMES, transport="memory", device_maps=MAPS) as cluster:
        agent = cluster.agent("a")
        agent.rpc_sync("b", echo, (1,), timeout=SECONDS)
        (link,) = [link for link in agent.connections.links if link.peer.name == "b"]
        hold = device.hold(device.current_stream(torch.device("cuda", 0)))
        future = agent.rpc_async("b", echo, (device.tensor(torch.zeros(60 << 20, dtype=torch.uint8)),))
        link.fail(PeerUnreachableError("b was lost"))
        hold.release()
        with pytest.raises(PeerUnreachableError):
            future.wait()
        assert ended.wait(SECONDS) and not agent.accelerator.pool.in_use


def test_an_answer_is_not_over_before_its_tensors_have_been_sent() -> None:
    """Who leaves waits for what is in flight."""
    with recording_device() as device, LocalCluster(NAMES, transport="memory", device_maps=MAPS) as cluster:
        a, b = cluster.agent("a"), cluster.agent("b")
        a.rpc_sync("b", echo, (1,), timeout=SECONDS)
        kept = a.remote("b", echo, (device.tensor(torch.ones(1 << 20)),))
        kept.to_here()
        served = b.invocation.served
        hold = device.hold(torch.device("cuda", 1))
        answered = a.rpc_async("b", echo, (1,), timeout=SECONDS)
        fetched = kept.rpc_async(timeout=SECONDS).mul(2)
        answered.wait()
        assert wait_until(lambda: b.invocation.served == served + 2)
        assert b.connections.in_flight == 1
        hold.release()
        assert device.to_host(fetched.wait()).tolist()[:2] == [2.0, 2.0]
        assert wait_until(lambda: b.connections.in_flight == 0)

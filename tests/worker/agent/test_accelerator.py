from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.cuda import failed
from rpcgroup.errors import DevicePlacementError, JoinError
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import RecordingDevice, recording_device
from rpcgroup.testing.recording_ipc import RecordingIpc

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)
PATIENCE = 60.0
ROLE_MAPS = {"trainer": {"server": {"cuda:0": "cuda:1"}}}


def place(tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Where it has arrived, and a result from there."""
    return str(tensor.device), tensor + 1


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


@pytest.fixture
def cluster(device: RecordingDevice) -> Iterator[LocalCluster]:
    """`t0` says of `s1` itself where its `cuda:0` stands there."""
    own = {"t0": {"s1": {"cuda:0": "cuda:0"}}}
    with LocalCluster(device_maps=own, role_device_maps=ROLE_MAPS) as cluster:
        cluster.join("t0", role="trainer")
        cluster.join("s0", role="server")
        cluster.join("s1", role="server")
        yield cluster


def sees(cluster: LocalCluster, caller: str, callee: str, device: RecordingDevice) -> str:
    """Where a tensor of the caller's first device arrives; its answer is back where it came from."""
    where, answer = cluster.agent(caller).rpc_sync(callee, place, (device.tensor([1.0, 2.0], ZERO),))
    assert answer.device == ZERO
    assert device.to_host(answer).tolist() == [2.0, 3.0]
    return str(where)


def test_tensors_go_by_the_map_for_the_callees_role_and_back(
    cluster: LocalCluster, device: RecordingDevice
) -> None:
    assert sees(cluster, "t0", "s0", device) == "cuda:1"
    assert sees(cluster, "t0", "s1", device) == "cuda:0"
    assert cluster["t0"].devices == [ZERO]
    assert cluster["s0"].devices == [ONE]
    assert cluster["s0"].reverse_device_maps == {"t0": {ONE: ZERO}}


def test_who_joins_later_has_the_maps_of_its_role(cluster: LocalCluster, device: RecordingDevice) -> None:
    cluster.join("t1", role="trainer")
    cluster.join("s2", role="server")
    assert sees(cluster, "t1", "s1", device) == "cuda:1"
    assert sees(cluster, "t0", "s2", device) == sees(cluster, "t1", "s2", device) == "cuda:1"


def test_a_role_without_a_map_is_sent_no_tensor_on_a_device(
    cluster: LocalCluster, device: RecordingDevice
) -> None:
    tensor = device.tensor([1.0], ZERO)
    with pytest.raises(DevicePlacementError, match=r"on the way to t0; its map: none"):
        cluster.agent("s0").rpc_sync("t0", place, (tensor,))


def test_a_worker_without_the_devices_of_its_roles_map_does_not_join() -> None:
    with recording_device(device_count=1), LocalCluster(role_device_maps=ROLE_MAPS) as cluster:
        cluster.join("t0", role="trainer")
        with pytest.raises(
            JoinError, match="Node t0 has target devices with invalid indices in its device map for s0"
        ):
            cluster.join("s0", role="server")
        cluster.join("c0", role="other")
        assert sorted(member.name for member in cluster["t0"].members()) == ["c0", "t0"]


# -- what the CPU of one is a device of the other ---------------------------------------------------------------


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def use(tensor: torch.Tensor, _: object) -> None:
    """With no answer that would have the host wait for it."""
    tensor + 1


@pytest.fixture
def to_and_from_the_cpu(device: RecordingDevice) -> Iterator[LocalCluster]:
    maps = {"a": {"b": {"cuda:0": "cpu"}, "c": {"cpu": "cuda:0"}}}
    with LocalCluster("abc", device_maps=maps) as cluster:
        yield cluster


def test_an_answer_from_a_cpu_is_kept_for_the_stream_of_whoever_waits(
    device: RecordingDevice, to_and_from_the_cpu: LocalCluster
) -> None:
    called = to_and_from_the_cpu.agent("a").rpc_async("b", double, (device.tensor([1.0, 2.0]),))
    settled = threading.Event()
    called.add_done_callback(lambda _: settled.set())
    assert settled.wait(PATIENCE)  # so another thread has decoded it
    with device.use([device.new_stream(ZERO)]):
        answer = called.wait(non_blocking=True)
        result = answer + 1
        del answer, called
        device.check()
        assert device.to_host(result).tolist() == [3.0, 5.0]


def test_gradients_from_a_cpu_are_kept_for_the_streams_of_the_pass(
    device: RecordingDevice, to_and_from_the_cpu: LocalCluster
) -> None:
    agent = to_and_from_the_cpu.agent("a")
    context = agent.autograd.new_context()
    try:
        x = device.tensor([1.0, 2.0]).requires_grad_()
        both = agent.rpc_sync("b", double, (x,)) + agent.rpc_sync("b", double, (x,))
        agent.autograd.backward(context.id, [both.sum()], False)
        assert device.to_host(context.gradients()[x]).tolist() == [4.0, 4.0]
    finally:
        agent.autograd.release(context.id)


def test_arguments_from_a_cpu_are_kept_for_a_function_that_waits_for_a_reference(
    device: RecordingDevice, to_and_from_the_cpu: LocalCluster
) -> None:
    agent = to_and_from_the_cpu.agent("a")
    reference = agent.remote("b", double, (torch.ones(1),))
    agent.rpc_sync("c", use, (torch.ones(2), reference))


# -- a device that has failed --------------------------------------------------------------------------------

BROKEN = "CUDA error: device-side assert triggered"


def test_calls_without_tensors_need_no_streams(
    device: RecordingDevice, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = cluster.agent("t0")
    fails_with(monkeypatch, device, "new_stream")
    assert agent.rpc_sync("s0", abs, (-1,), timeout=PATIENCE) == 1
    assert agent.remote("s0", abs, (-2,)).to_here() == 2


def test_a_function_for_which_there_are_no_streams_is_answered_with_the_error(
    device: RecordingDevice, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = cluster.agent("t0")
    tensor = device.tensor([1.0, 2.0])
    new_stream = device.new_stream

    def for_transfers(of: torch.device, priority: int = 0) -> object:
        if not priority:
            raise RuntimeError(BROKEN)
        return new_stream(of, priority)

    monkeypatch.setattr(device, "new_stream", for_transfers)
    with pytest.raises(RuntimeError, match="device-side assert"):
        agent.rpc_sync("s0", double, (tensor,), timeout=PATIENCE)
    assert agent.rpc_sync("s0", abs, (-1,), timeout=PATIENCE) == 1
    monkeypatch.undo()
    assert device.to_host(agent.rpc_sync("s0", double, (tensor,))).tolist() == [2.0, 4.0]


_breaks = threading.Event()


def use_and_break(tensor: torch.Tensor) -> None:
    tensor + 1
    _breaks.set()


def test_arguments_are_not_freed_by_a_worker_whose_device_has_failed(
    device: RecordingDevice, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function's stream has used them, too: torch would end the process."""
    kept: list[object] = []
    monkeypatch.setattr(failed, "_kept", kept)
    agent = cluster.agent("t0")
    tensor = device.tensor([1.0, 2.0])
    agent.rpc_sync("s0", use, (tensor, None))
    assert not kept
    record = device.record

    def record_until_broken(stream: object) -> object:
        if _breaks.is_set():
            raise RuntimeError(BROKEN)
        return record(stream)

    monkeypatch.setattr(device, "record", record_until_broken)
    try:
        agent.rpc_sync("s0", use_and_break, (tensor,))
        until(lambda: bool(kept))
    finally:
        _breaks.clear()
    [[argument]] = kept
    assert argument.nbytes == tensor.nbytes


def fails_with(monkeypatch: pytest.MonkeyPatch, device: RecordingDevice, method: str) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError(BROKEN)

    monkeypatch.setattr(device, method, fail)


def first(tensor: torch.Tensor, _: object) -> torch.Tensor:
    return tensor


def owned_with(tensor: torch.Tensor) -> tuple[object, torch.Tensor]:
    """A reference that is owned where this runs, and a tensor."""
    return current_agent().references.create(5), tensor + 1


_callees: list[Agent] = []


def current_agent() -> Agent:
    (agent,) = _callees
    return agent


def let_go(cluster: LocalCluster, owner: str) -> bool:
    gc.collect()  # an exception's traceback may hold a reference
    for name in cluster:
        cluster.agent(name).references.reap()
    return cluster.agent(owner).references.counts().owner_rrefs == 0


@pytest.mark.parametrize("in_context", [False, True])
def test_references_come_back_from_a_call_whose_tensors_find_no_memory(
    device: RecordingDevice, cluster: LocalCluster, in_context: bool
) -> None:
    agent = cluster.agent("t0")
    mine = agent.references.create(5)
    context = agent.autograd.new_context() if in_context else None
    try:
        sent = device.tensor([1.0, 2.0]).requires_grad_()
        device.fail_next("empty", torch.OutOfMemoryError("CUDA out of memory"))
        with pytest.raises(torch.OutOfMemoryError):
            agent.rpc_sync("s0", first, (sent, mine), timeout=PATIENCE)
    finally:
        if context is not None:
            agent.autograd.release(context.id)
    del mine
    until(lambda: let_go(cluster, "t0"))


@pytest.mark.parametrize("in_context", [False, True])
def test_references_come_back_from_an_answer_whose_tensors_find_no_memory(
    device: RecordingDevice, cluster: LocalCluster, in_context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = cluster.agent("t0")
    _callees[:] = [cluster.agent("s0")]
    sent = device.tensor([1.0, 2.0]).requires_grad_()
    empty = device.empty

    def none_for_answers(size: int, on: torch.device) -> torch.Tensor:
        if on == ZERO:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(size, on)

    monkeypatch.setattr(device, "empty", none_for_answers)
    context = agent.autograd.new_context() if in_context else None
    try:
        with pytest.raises(torch.OutOfMemoryError):
            agent.rpc_sync("s0", owned_with, (sent,), timeout=PATIENCE)
    finally:
        _callees.clear()
        if context is not None:
            agent.autograd.release(context.id)
    until(lambda: let_go(cluster, "s0"))


# -- shared memory -------------------------------------------------------------------------------------------

LARGE = 1 << 17
"""Elements: more than what goes by the host in any case."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


@pytest.fixture
def ipc(device: RecordingDevice) -> RecordingIpc:
    device.shared_memory = RecordingIpc(device)
    return device.shared_memory


def traffic(cluster: LocalCluster, name: str) -> dict[str, int]:
    accelerator = cluster.agent(name).accelerator
    assert accelerator is not None
    return accelerator.traffic.total


def call_until(cluster: LocalCluster, device: RecordingDevice, condition: Callable[[], bool]) -> None:
    """Calls with a large tensor, whose values are right every time."""
    tensor = device.tensor(torch.arange(float(LARGE)), ZERO)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        answer = cluster.agent("t0").rpc_sync("s0", double, (tensor,))
        assert torch.equal(device.to_host(answer), torch.arange(float(LARGE)) * 2)


def test_tensors_go_by_shared_memory_once_a_probe_has_come_back_right(
    device: RecordingDevice, ipc: RecordingIpc, cluster: LocalCluster
) -> None:
    def both_ways() -> bool:
        total = traffic(cluster, "t0")
        return bool(total["sent_ipc"] and total["received_ipc"])

    call_until(cluster, device, both_ways)
    assert traffic(cluster, "t0")["sent_host"]  # until then
    until(lambda: not ipc.shared)  # the last reader has released it


_ran = threading.Event()


def use_and_tell(tensor: torch.Tensor) -> None:
    tensor + 1
    _ran.set()


def use_and_count(tensor: torch.Tensor) -> int:
    use_and_tell(tensor)
    return 1


def use_and_fail(tensor: torch.Tensor) -> None:
    use_and_tell(tensor)
    raise ValueError("behind its use")


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("function", [use_and_tell, use_and_count, use_and_fail])
def test_what_was_sent_may_be_changed_once_the_call_has_been_answered(
    device: RecordingDevice,
    ipc: RecordingIpc,
    cluster: LocalCluster,
    function: Callable[[torch.Tensor], object],
    in_context: bool,
) -> None:
    """As by the host: who pushes gradients and then sets them to zero does not know which way they went."""
    call_until(cluster, device, lambda: bool(traffic(cluster, "t0")["sent_ipc"]))
    agent = cluster.agent("t0")
    before = traffic(cluster, "t0")["sent_ipc"]
    tensor = device.tensor(torch.ones(LARGE), ZERO)
    _ran.clear()
    context = agent.autograd.new_context() if in_context else None
    busy = device.hold(ONE)
    try:
        called = agent.rpc_async("s0", function, (tensor,), timeout=PATIENCE)
        assert _ran.wait(PATIENCE) and traffic(cluster, "t0")["sent_ipc"] > before
        assert agent.rpc_sync("s0", abs, (-1,)) == 1  # whose answer is behind that of the first
        assert not called.done()
    finally:
        busy.release()
        if context is not None:
            agent.autograd.release(context.id)
    with nullcontext() if function is not use_and_fail else pytest.raises(ValueError, match="its use"):
        called.wait()
    tensor.zero_()
    device.check()


def test_a_future_is_done_while_the_callees_stream_is_at_work(
    device: RecordingDevice, ipc: RecordingIpc, cluster: LocalCluster
) -> None:
    call_until(cluster, device, lambda: bool(traffic(cluster, "t0")["received_ipc"]))
    busy = device.hold(ONE)
    tensor = device.tensor(torch.ones(LARGE), ZERO)
    try:
        called = cluster.agent("t0").rpc_async("s0", double, (tensor,))
        answer = called.wait(non_blocking=True)
        assert not device.is_done(device.record(device.current_stream(ZERO)))
    finally:
        busy.release()
    called.wait()
    assert torch.equal(device.to_host(answer), torch.full((LARGE,), 2.0))


def test_a_peer_that_cannot_open_the_memory_gets_tensors_by_the_host(
    device: RecordingDevice, ipc: RecordingIpc, cluster: LocalCluster
) -> None:
    ipc.failures["open"] = RuntimeError("another namespace")
    call_until(cluster, device, lambda: traffic(cluster, "t0")["sent_host"] > 8 * 4 * LARGE)
    assert not traffic(cluster, "t0")["sent_ipc"]
    until(lambda: not ipc.shared)


def test_memory_shared_with_a_peer_that_dies_is_let_go(
    device: RecordingDevice, ipc: RecordingIpc, cluster: LocalCluster
) -> None:
    call_until(cluster, device, lambda: bool(traffic(cluster, "t0")["sent_ipc"]))
    busy = device.hold(ZERO)  # what is sent now is not read before
    cluster.agent("t0").rpc_async("s0", double, (device.tensor(torch.ones(LARGE), ZERO),))
    cluster.evict("s0")
    until(lambda: not ipc.shared)
    busy.release()


def test_nobody_asks_a_peer_of_another_host(
    device: RecordingDevice, ipc: RecordingIpc, cluster: LocalCluster
) -> None:
    agent = cluster.agent("t0")
    agent.record = replace(agent.record, host="another")
    call_until(cluster, device, lambda: traffic(cluster, "t0")["sent_host"] > 8 * 4 * LARGE)
    assert not traffic(cluster, "t0")["sent_ipc"]
    until(lambda: not ipc.shared)

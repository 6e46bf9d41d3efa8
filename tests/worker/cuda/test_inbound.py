from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcgroup.cuda.arrival import Arrival
from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.inbound import EARLY_LIMIT
from rpcgroup.cuda.staging import staging_of
from rpcgroup.errors import RemoteProtocolError
from rpcgroup.testing.device_tensor import DeviceTensor
from rpcgroup.testing.recording_device import RecordingDevice, recording_device
from rpcgroup.testing.recording_ipc import RecordingIpc
from rpcgroup.wire.payloads import HOST, IPC, Payload
from tests.worker.cuda.wires import CHUNK, Wire, arrived, payloads_for, random_bytes

SECONDS = 20.0


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


def test_tensors_arrive_on_the_devices_they_are_for(device: RecordingDevice) -> None:
    wire = Wire(device)
    tensors = [random_bytes(device, size) for size in (5, 2 * CHUNK + 1, 0, CHUNK)]
    wire.expect(1, payloads_for(tensors, (1, 0, 1, 1)))
    wire.depart(1, tensors)
    wire.deliver()
    assert [str(tensor.device) for tensor in wire.ready[1].tensors] == [
        "cuda:1",
        "cuda:0",
        "cuda:1",
        "cuda:1",
    ]
    assert wire.ready[1].devices == [torch.device("cuda", 1), torch.device("cuda", 0)]
    for sent, got in zip(tensors, arrived(wire, 1), strict=True):
        assert torch.equal(sent.cpu(), got)
    assert not wire.arrivals.pending


def test_it_is_ready_when_the_last_copy_is_enqueued_and_not_when_it_is_done(device: RecordingDevice) -> None:
    wire = Wire(device)
    tensors = [random_bytes(device, CHUNK)]
    wire.depart(1, tensors)
    hold = device.hold(1)
    wire.expect(1, payloads_for(tensors, [1]))
    assert 1 not in wire.ready
    wire.deliver()
    waited = threading.Event()
    thread = threading.Thread(target=lambda: (wire.ready[1].synchronize(), waited.set()))
    thread.start()
    assert not waited.wait(0.05)
    hold.release()
    assert waited.wait(SECONDS)
    thread.join(SECONDS)


def test_memory_for_what_arrives_is_of_one_stream_for_each_device(device: RecordingDevice) -> None:
    """torch gives what was allocated on one to no other, and the pool's are others for each message."""
    wire = Wire(device)
    homes: dict[str, set[object]] = {}
    for transfer in range(3):
        wire.expect(transfer, [Payload(0, 0), Payload(0, 1)])
        for tensor in wire.ready[transfer].tensors:
            assert isinstance(tensor, DeviceTensor)
            homes.setdefault(str(tensor.device), set()).add(tensor.block.memory.home)
    assert {at: len(lanes) for at, lanes in homes.items()} == {"cuda:0": 1, "cuda:1": 1}


def test_received_memory_is_kept_until_its_copy_is_done(device: RecordingDevice) -> None:
    wire = Wire(device, receiver_blocks=1)
    tensors = [random_bytes(device, 2 * CHUNK)]
    wire.depart(1, tensors)
    hold = device.hold(1)
    wire.expect(1, payloads_for(tensors, [1]))
    wire.deliver()
    wire.timers.fire()
    # The second came into ordinary memory, for the block was still being read.
    assert wire.receiver_pool.in_use == 1 and wire.completions.waiting == 2
    hold.release()
    wire.timers.fire()
    assert wire.receiver_pool.in_use == 0 and wire.completions.waiting == 0
    assert torch.equal(arrived(wire, 1)[0], tensors[0].cpu())


def test_memory_for_chunks_is_pinned_where_that_is_worth_it_and_there_is_some(
    device: RecordingDevice,
) -> None:
    wire = Wire(device, receiver_blocks=1)
    assert staging_of(wire.arrivals.allocate(100)) is None
    first = wire.arrivals.allocate(CHUNK)
    assert staging_of(first) is not None and len(first) == CHUNK
    assert staging_of(wire.arrivals.allocate(CHUNK)) is None
    stream = device.new_stream(torch.device("cuda", 0))
    wire.completions.keep(first, stream)
    del first
    assert staging_of(wire.arrivals.allocate(CHUNK)) is not None  # looks what has been done meanwhile
    with pytest.raises(RemoteProtocolError, match="the largest"):
        wire.arrivals.allocate(CHUNK + 1)


def test_memory_that_cannot_be_pinned_is_ordinary(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(device)

    def refuse(size: int) -> None:
        raise RuntimeError("cannot pin")

    monkeypatch.setattr(device, "pinned", refuse)
    assert isinstance(wire.arrivals.allocate(CHUNK), bytearray)


def test_without_bytes_it_is_ready_at_once(device: RecordingDevice) -> None:
    wire = Wire(device)
    wire.expect(1, [])
    wire.expect(2, [Payload(0, 1), Payload(0, 0)])
    assert [tensor.nbytes for tensor in wire.ready[2].tensors] == [0, 0] and not wire.ready[1].tensors
    assert not wire.arrivals.pending


# -- order ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2 * CHUNK + 3)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_chunks_of_several_transfers_in_any_order(
    messages: list[list[tuple[int, int]]], receiver_blocks: int, choose: random.Random
) -> None:
    """Two threads can handle what one channel brings: neither chunks nor their announcements are in order then."""
    with recording_device(3) as device:
        wire = Wire(device, blocks=64, receiver_blocks=receiver_blocks)
        sent = {
            transfer: [random_bytes(device, size, index) for index, size in message]
            for transfer, message in enumerate(messages)
        }
        targets = {t: [choose.randrange(3) for _ in tensors] for t, tensors in sent.items()}
        for transfer, tensors in sent.items():
            wire.depart(transfer, tensors)
        unannounced = list(sent)
        choose.shuffle(unannounced)
        while unannounced or wire.under_way:
            if unannounced and (not wire.under_way or choose.random() < 0.4):
                transfer = unannounced.pop()
                wire.expect(transfer, payloads_for(sent[transfer], targets[transfer]))
            else:
                which = choose.randrange(len(wire.under_way))
                wire.deliver_one(which)
            if choose.random() < 0.3:
                wire.timers.fire()
        for transfer, tensors in sent.items():
            assert [t.device.index for t in wire.ready[transfer].tensors] == targets[transfer]
            for before, got in zip(tensors, arrived(wire, transfer), strict=True):
                assert torch.equal(before.cpu(), got)
        assert not wire.arrivals.pending and not wire.refused and not wire.failed
        wire.timers.fire()
        assert wire.pool.in_use == wire.receiver_pool.in_use == 0


def test_all_that_is_sent_may_come_before_it_is_announced(device: RecordingDevice) -> None:
    wire = Wire(device, blocks=64)
    tensors = [random_bytes(device, 30 * CHUNK), *(random_bytes(device, 1) for _ in range(2 * EARLY_LIMIT))]
    wire.depart(1, tensors)
    wire.deliver()
    wire.expect(1, payloads_for(tensors, [1] * len(tensors)))
    for sent, got in zip(tensors, arrived(wire, 1), strict=True):
        assert torch.equal(sent.cpu(), got)
    assert not wire.arrivals.pending


def test_threads_at_once(device: RecordingDevice) -> None:
    wire = Wire(device, blocks=64)
    tensors = [random_bytes(device, 6 * CHUNK), random_bytes(device, 6 * CHUNK, 1)]
    wire.depart(1, tensors)
    lock = threading.Lock()

    def deliver() -> None:
        while True:
            with lock:
                if not wire.under_way:
                    return
                transfer, index, place, memory = wire.under_way.popleft()
            received = wire.arrivals.allocate(len(memory))
            memoryview(received).cast("B")[:] = memory
            wire.arrivals.on_chunk(transfer, index, place, received)

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    threads.append(threading.Thread(target=wire.expect, args=(1, payloads_for(tensors, [1, 0]))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    for sent, got in zip(tensors, arrived(wire, 1), strict=True):
        assert torch.equal(sent.cpu(), got)


def test_nobody_waits_for_the_copy_of_another_chunk(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of the reactor that did would cost another one, for each chunk."""
    wire = Wire(device, blocks=64)
    tensors = [random_bytes(device, 4 * CHUNK)]
    wire.depart(1, tensors)
    wire.expect(1, payloads_for(tensors, [1]))
    copying, go_on = threading.Event(), threading.Event()
    copy = device.copy

    def copy_slowly(target: torch.Tensor, source: torch.Tensor) -> None:
        copying.set()
        assert go_on.wait(SECONDS)
        copy(target, source)

    monkeypatch.setattr(device, "copy", copy_slowly)
    first, others = (
        threading.Thread(target=deliver) for deliver in (partial(wire.deliver_one, 0), wire.deliver)
    )
    first.start()
    assert copying.wait(SECONDS)
    others.start()
    try:
        others.join(SECONDS / 4)
        assert not others.is_alive() and not wire.under_way
        assert not wire.ready and wire.arrivals.pending == 1
    finally:
        go_on.set()
        first.join(SECONDS)
        others.join(SECONDS)
    assert torch.equal(arrived(wire, 1)[0], tensors[0].cpu())
    assert not wire.arrivals.pending


def test_of_transfers_that_nobody_expects_not_much_is_kept(device: RecordingDevice) -> None:
    wire = Wire(device)
    for transfer in range(3 * EARLY_LIMIT):
        wire.arrivals.on_chunk(transfer, 0, 0, bytearray(b"x"))
    wire.expect(0, [Payload(1, 0)])
    wire.expect(3 * EARLY_LIMIT - 1, [Payload(1, 0)])
    assert list(wire.ready) == [3 * EARLY_LIMIT - 1]


# -- what no peer sends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "place", "size"),
    [
        (0, 0, CHUNK - 1),
        (0, 0, CHUNK + 1),
        (0, 1, 11),
        (0, 2, 0),
        (1, 0, 1),
        (2, 0, 1),
        (3, 0, 1),
    ],
)
def test_a_chunk_that_is_missing_nowhere_is_refused(
    device: RecordingDevice, index: int, place: int, size: int
) -> None:
    ipc = RecordingIpc(device)
    wire = Wire(device, ipc=ipc)
    shared = ipc.export(random_bytes(device, 10))
    wire.expect(1, [Payload(CHUNK + 10, 0), Payload(0, 0), Payload(10, 0, IPC, shared.blob)])
    with pytest.raises(RemoteProtocolError, match=f"chunk {place} of payload {index}"):
        wire.arrivals.on_chunk(1, index, place, bytearray(size))


def test_a_chunk_that_comes_again_is_refused(device: RecordingDevice) -> None:
    wire = Wire(device)
    wire.expect(1, [Payload(CHUNK + 10, 0)])
    wire.arrivals.on_chunk(1, 0, 1, bytearray(10))
    with pytest.raises(RemoteProtocolError, match="chunk 1 of payload 0"):
        wire.arrivals.on_chunk(1, 0, 1, bytearray(10))


def test_a_device_that_is_not_here_is_refused(device: RecordingDevice) -> None:
    with pytest.raises(RemoteProtocolError, match="cuda:2, and 2 devices are here"):
        Wire(device).expect(1, [Payload(1, 0), Payload(1, 2)])


def test_shared_memory_is_refused_where_it_has_not_been_agreed_on(device: RecordingDevice) -> None:
    with pytest.raises(RemoteProtocolError, match="not been agreed on"):
        Wire(device).expect(1, [Payload(1, 0, IPC, b"blob")])


def test_a_transfer_is_announced_once(device: RecordingDevice) -> None:
    wire = Wire(device)
    wire.expect(1, [Payload(1, 0, HOST)])
    with pytest.raises(RemoteProtocolError, match="announced twice"):
        wire.expect(1, [Payload(1, 0, HOST)])


# -- failure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["empty", "copy", "record"])
@pytest.mark.parametrize("step", range(5))
def test_a_failure_at_any_step_is_told_once_and_the_rest_is_swallowed(
    device: RecordingDevice, what: str, step: int
) -> None:
    wire = Wire(device)
    tensors = [random_bytes(device, 2 * CHUNK), random_bytes(device, CHUNK + 1)]
    wire.depart(1, tensors)
    error = torch.OutOfMemoryError("CUDA out of memory") if what == "empty" else RuntimeError("CUDA error")
    count = [0]
    real = getattr(device, what)

    def failing(*args: object) -> object:
        count[0] += 1
        if count[0] == step + 1:
            raise error
        return real(*args)

    setattr(device, what, failing)
    wire.expect(1, payloads_for(tensors, [1, 0]))
    wire.deliver()
    setattr(device, what, real)
    if count[0] > step:
        assert wire.refused[1] is error and not wire.ready
    else:
        assert not wire.refused
    assert not wire.arrivals.pending
    wire.timers.fire()
    wire.timers.fire()
    gc.collect()
    assert wire.receiver_pool.in_use == wire.pool.in_use == 0
    # And the channel goes on.
    wire.expect(2, payloads_for(tensors, [0, 1]))
    wire.depart(2, tensors)
    wire.deliver()
    assert torch.equal(arrived(wire, 2)[0], tensors[0].cpu())


def test_a_failure_of_the_sender_reaches_who_waits(device: RecordingDevice) -> None:
    wire = Wire(device)
    tensors = [random_bytes(device, 3 * CHUNK)]
    wire.depart(1, tensors)
    wire.expect(1, payloads_for(tensors, [0]))
    wire.deliver(2)
    targets = wire.arrivals._transfers[1]._targets
    alive = weakref.ref(targets[0])
    del targets
    error = RuntimeError("On worker0: CUDA error")
    wire.arrivals.on_failed(1, error)
    assert wire.refused == {1: error} and not wire.arrivals.pending
    gc.collect()
    assert alive() is None
    wire.timers.fire()
    assert wire.receiver_pool.in_use == 0


def test_a_failure_that_overtakes_the_announcement_reaches_who_waits(device: RecordingDevice) -> None:
    wire = Wire(device)
    error = RuntimeError("CUDA error")
    wire.arrivals.on_failed(1, error)
    wire.expect(1, [Payload(10, 0)])
    assert wire.refused == {1: error} and not wire.arrivals.pending


def test_both_sides_can_fail_and_it_is_told_once(device: RecordingDevice) -> None:
    wire = Wire(device)
    device.fail_next("empty", torch.OutOfMemoryError("CUDA out of memory"))
    wire.expect(1, [Payload(10, 0)])
    wire.arrivals.on_failed(1, RuntimeError("CUDA error"))
    assert isinstance(wire.refused[1], torch.OutOfMemoryError) and not wire.arrivals.pending


def test_close_drops_everything_and_tells_nobody(device: RecordingDevice) -> None:
    wire = Wire(device)
    tensors = [random_bytes(device, 2 * CHUNK)]
    wire.depart(1, tensors)
    wire.expect(1, payloads_for(tensors, [0]))
    wire.deliver(1)
    wire.arrivals.on_chunk(99, 0, 0, wire.arrivals.allocate(CHUNK))
    wire.arrivals.close()
    wire.timers.fire()
    assert wire.receiver_pool.in_use == 0
    wire.deliver()
    wire.expect(2, [Payload(0, 0)])
    wire.arrivals.on_failed(1, RuntimeError())
    wire.timers.fire()
    assert not wire.ready and not wire.refused and wire.receiver_pool.in_use == 0


def test_who_is_told_may_use_the_arrivals(device: RecordingDevice) -> None:
    """No lock is held: the message that was waited for is handled, and may close all of this."""
    wire = Wire(device)

    def ready(events: Events) -> None:
        wire.expect(2, [Payload(0, 0)])
        wire.arrivals.close()

    wire.arrivals.expect(1, [Payload(1, 0)], ready, pytest.fail)
    wire.arrivals.on_chunk(1, 0, 0, bytearray(1))
    assert 2 in wire.ready


# -- the checker finds what is left out -------------------------------------------------------------------


def test_memory_that_is_received_into_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = RecordingDevice()
    wire = Wire(device, receiver_blocks=1)
    monkeypatch.setattr(Completions, "keep", lambda self, thing, stream: None)
    tensors = [random_bytes(device, 2 * CHUNK)]
    wire.depart(1, tensors)
    wire.expect(1, payloads_for(tensors, [1]))
    wire.deliver()
    assert "has not synchronized with the read" in "".join(device.violations)


def test_a_message_that_goes_on_before_the_last_copy_is_enqueued_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = RecordingDevice()
    wire = Wire(device)
    early: list[Events] = []
    monkeypatch.setattr(Arrival, "_allocate", _recording(Arrival._allocate, early))
    tensors = [random_bytes(device, CHUNK)]
    wire.depart(1, tensors)
    wire.expect(1, payloads_for(tensors, [1]))
    wire.deliver()
    wire.ready[1] = early[0]
    arrived(wire, 1)
    assert "is not behind the write" in "".join(device.violations)


def test_a_tensor_that_is_used_without_its_event_is_found() -> None:
    device = RecordingDevice()
    wire = Wire(device)
    wire.expect(1, [Payload(10, 1)])
    wire.arrivals.on_chunk(1, 0, 0, bytearray(10))
    wire.ready[1].tensors[0].cpu()
    assert "is not behind the write" in "".join(device.violations)


def _recording(allocate: Callable[[Arrival], None], events: list[Events]) -> Callable[[Arrival], None]:
    def allocate_and_record(arrival: Arrival) -> None:
        allocate(arrival)
        events.append(arrival._record())

    return allocate_and_record

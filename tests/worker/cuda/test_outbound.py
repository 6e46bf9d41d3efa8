from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.cuda.outbound import Departure, pack_blocks
from rpcgroup.cuda.staging import SMALL
from rpcgroup.testing.recording_device import RecordingDevice, recording_device
from tests.worker.cuda.wires import CHUNK, Wire, random_bytes

SECONDS = 20.0


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


def test_the_bytes_of_every_tensor_go_out(device: RecordingDevice) -> None:
    wire = Wire(device, blocks=40)
    sizes = (3, 0, CHUNK, 2 * CHUNK + 17, 40_000, 40_000)
    tensors = [random_bytes(device, size, i % 2) for i, size in enumerate(sizes)]
    wire.depart(7, tensors)
    out = [bytearray(size) for size in sizes]
    for transfer, index, place, memory in wire.under_way:
        assert transfer == 7 and len(memory) <= CHUNK
        out[index][place * CHUNK : place * CHUNK + len(memory)] = memory
    assert [bytes(data) for data in out] == [bytes(tensor.tolist()) for tensor in tensors]
    assert not wire.failed


def test_small_tensors_share_a_block_and_keep_none(device: RecordingDevice) -> None:
    wire = Wire(device, blocks=1)
    wire.depart(1, [random_bytes(device, 100) for _ in range(100)])
    assert len(wire.under_way) == 100 and wire.pool.in_use == 0


def test_what_is_written_keeps_its_block_until_it_is_acknowledged(device: RecordingDevice) -> None:
    wire = Wire(device)
    wire.depart(1, [random_bytes(device, 3 * CHUNK)])
    for left in (3, 2, 1):
        assert wire.pool.in_use == left
        wire.under_way.popleft()
    assert wire.pool.in_use == 0


def test_the_next_copy_is_enqueued_before_the_last_is_waited_for(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    wire = Wire(device)
    departure = wire.departure(1, [random_bytes(device, 3 * CHUNK)])
    copy, synchronize = device.copy, device.synchronize
    monkeypatch.setattr(device, "copy", lambda *a: (steps.append("copy"), copy(*a)))
    monkeypatch.setattr(device, "synchronize", lambda event: (steps.append("wait"), synchronize(event)))
    departure.run(lambda *chunk: steps.append("put"), wire.failed.__setitem__)
    assert steps == ["wait", "copy", "copy", "wait", "put", "copy", "wait", "put", "wait", "put"]


def test_it_waits_for_the_stream_that_writes_and_takes_no_block_meanwhile(device: RecordingDevice) -> None:
    wire = Wire(device)
    tensor = random_bytes(device, CHUNK)
    hold = device.hold(device.current_stream(tensor.device))
    departure = wire.departure(1, [tensor])
    thread = threading.Thread(target=departure.run, args=(wire.put, wire.failed.__setitem__))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive() and not wire.under_way and wire.pool.in_use == 0
    hold.release()
    thread.join(SECONDS)
    assert not thread.is_alive() and len(wire.under_way) == 1


def test_more_goes_out_than_the_pool_holds(device: RecordingDevice) -> None:
    """Whoever waits for a block holds none: two that have one each must not wait for each other."""
    wire = Wire(device, blocks=2)
    lock = threading.Lock()
    put = []

    def take(transfer: int, index: int, place: int, memory: memoryview) -> None:
        with lock:
            put.append((transfer, place, bytes(memory[:1])))

    threads = []
    for transfer in range(4):
        departure = wire.departure(transfer, [random_bytes(device, 8 * CHUNK)])
        threads.append(threading.Thread(target=departure.run, args=(take, wire.failed.__setitem__)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(put) == 32 and not wire.failed and wire.pool.in_use == 0
    assert [p for t, p, _ in put if t == 3] == list(range(8))  # in order


def test_tensors_are_kept_until_they_are_copied_and_not_longer(device: RecordingDevice) -> None:
    wire = Wire(device)
    alive: list[list[bool]] = []
    tensors = [random_bytes(device, CHUNK) for _ in range(3)]
    refs = [weakref.ref(tensor) for tensor in tensors]
    departure = wire.departure(1, tensors)
    del tensors
    gc.collect()
    assert all(ref() is not None for ref in refs)
    departure.run(lambda *chunk: alive.append([ref() is not None for ref in refs]), wire.failed.__setitem__)
    assert alive == [[False, True, True], [False, False, True], [False, False, False]]


def test_no_staging_in_time_fails_the_transfer(device: RecordingDevice) -> None:
    wire = Wire(device, blocks=1)
    held = wire.pool.try_take()
    wire.depart(5, [random_bytes(device, 10)], timeout=0.01)
    assert isinstance(wire.failed[5], TimeoutError) and "no pinned memory came free" in str(wire.failed[5])
    del held
    assert wire.pool.in_use == 0


@pytest.mark.parametrize("what", ["copy", "record", "synchronize", "put", "pinned"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_failure_at_any_step_is_told_once_and_keeps_nothing(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    wire = Wire(device)
    tensors = [random_bytes(device, 2 * CHUNK), random_bytes(device, 2 * CHUNK, 1)]
    refs = [weakref.ref(tensor) for tensor in tensors]
    departure = wire.departure(9, tensors)
    del tensors
    told: list[tuple[int, Exception]] = []
    left = [step]

    def fails(real: Callable[..., object]) -> Callable[..., object]:
        def step_of(*args: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return real(*args)

        return step_of

    put = wire.put
    if what == "put":
        put = fails(put)  # type: ignore[assignment]
    else:
        monkeypatch.setattr(device, what, fails(getattr(device, what)))
    departure.run(put, lambda *failure: told.append(failure))
    monkeypatch.undo()
    assert len(told) == (left[0] <= 0)  # later steps than there are do not fail
    for transfer, exc in told:
        assert transfer == 9 and "illegal memory access" in str(exc)
    gc.collect()
    assert all(ref() is None for ref in refs)
    wire.under_way.clear()
    assert wire.pool.in_use == 0


def test_a_block_is_not_given_back_while_a_copy_into_it_is_under_way(device: RecordingDevice) -> None:
    """The second copy fails: the first one's block, which nobody waits for any more, is used again at once."""
    wire = Wire(device, blocks=2)
    departure = wire.departure(1, [random_bytes(device, 4 * CHUNK)])
    device_copy = device.copy
    copies = []

    def copy(target: torch.Tensor, source: torch.Tensor) -> None:
        copies.append(target)
        if len(copies) == 2:
            raise RuntimeError("CUDA error")
        device_copy(target, source)

    device.copy = copy  # type: ignore[method-assign]
    departure.run(wire.put, wire.failed.__setitem__)
    device.copy = device_copy  # type: ignore[method-assign]
    assert len(wire.failed) == 1
    staging = [wire.pool.try_take(), wire.pool.try_take()]
    for block in staging:
        assert block is not None
        block.memory(CHUNK)[:] = bytes(CHUNK)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000)), max_size=30),
    st.sampled_from((64, 512, 1000)),
)
def test_blocks_hold_every_byte_once_and_in_order(payloads: list[tuple[int, int]], chunk: int) -> None:
    seen: list[tuple[int, int, int]] = []
    for block in pack_blocks(payloads, chunk):
        assert block
        end = 0
        for index, place, start, size, at in block:
            assert size > 0 and at >= end and at + size <= chunk and start == place * chunk
            end = at + size
            seen.append((index, start, size))
    expected = [
        (index, start, min(chunk, size - start))
        for index, size in payloads
        for start in range(0, size, chunk)
    ]
    assert seen == expected


# -- the checker finds what is left out -------------------------------------------------------------------


def test_a_tensor_that_is_not_waited_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = RecordingDevice()
    wire = Wire(device)
    tensor = random_bytes(device, CHUNK)
    with monkeypatch.context() as patch:
        patch.setattr(device, "wait", lambda stream, event: None)
        departure = wire.departure(1, [tensor])
    synchronize, skipped = device.synchronize, []

    def all_but_the_first(event: Any) -> None:
        if skipped:
            synchronize(event)
        skipped.append(event)

    monkeypatch.setattr(device, "synchronize", all_but_the_first)
    departure.run(wire.put, wire.failed.__setitem__)
    assert "is not behind the write" in "".join(device.violations)


def test_staging_that_is_read_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = RecordingDevice()
    wire = Wire(device)
    monkeypatch.setattr(device, "synchronize", lambda event: None)
    wire.depart(1, [random_bytes(device, CHUNK)])
    assert "has not synchronized with the write" in "".join(device.violations)


def test_a_block_that_comes_back_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = RecordingDevice()
    wire = Wire(device, blocks=2)
    monkeypatch.setattr(Departure, "_settle", lambda self, stream: None)
    departure = wire.departure(1, [random_bytes(device, 4 * CHUNK)])

    def fail(*chunk: Any) -> None:
        raise ConnectionError("the peer was lost")

    departure.run(fail, wire.failed.__setitem__)
    for _ in range(2):
        staging = wire.pool.try_take()
        assert staging is not None
        staging.memory(CHUNK)[:] = bytes(CHUNK)
    assert "has not synchronized with the write" in "".join(device.violations)


def test_the_small_are_smaller_than_a_chunk() -> None:
    assert SMALL < CHUNK

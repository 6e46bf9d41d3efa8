from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcgroup.cuda import failed
from rpcgroup.cuda.outbound import prepare
from rpcgroup.cuda.sharing import Exports, Probes, answer_probe
from rpcgroup.cuda.staging import SMALL
from rpcgroup.testing.recording_device import RecordingDevice, recording_device
from rpcgroup.testing.recording_ipc import RecordingIpc
from rpcgroup.wire.payloads import HOST, IPC, Payload
from tests.worker.cuda.wires import CHUNK, Wire, arrived, random_bytes

LARGE = SMALL + 1
ZERO = torch.device("cuda", 0)


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


class Pair(Wire):
    """A wire whose ends share memory."""

    def __init__(self, device: RecordingDevice) -> None:
        self.ipc = RecordingIpc(device)
        super().__init__(device, ipc=self.ipc)
        self.exports = Exports(self.ipc, lambda device: True)

    def send(self, transfer: int, tensors: list[torch.Tensor], targets: list[int]) -> list[Payload]:
        both = list(zip(tensors, targets, strict=True))
        payloads, departure = prepare(self.device, self.pool, transfer, both, self.exports)
        departure.run(self.put, self.failed.__setitem__)
        return payloads

    def release(self) -> None:
        """What the receiver has let go is released at the sender."""
        self.timers.fire()
        for transfer in self.released:
            self.exports.release(transfer)


def test_shared_memory_is_read_without_a_chunk(device: RecordingDevice) -> None:
    pair = Pair(device)
    tensors = [random_bytes(device, LARGE), random_bytes(device, LARGE + 5)]
    payloads = pair.send(1, tensors, [0, 1])
    assert [payload.path for payload in payloads] == [IPC, IPC] and not pair.under_way
    pair.expect(1, payloads)
    for sent, got in zip(tensors, arrived(pair, 1), strict=True):
        assert torch.equal(sent.cpu(), got)
    pair.release()
    assert pair.released == [1] and not pair.ipc.shared and not pair.exports.transfers


def test_small_tensors_go_by_the_host_beside_it(device: RecordingDevice) -> None:
    pair = Pair(device)
    tensors = [random_bytes(device, size) for size in (SMALL, LARGE, 0)]
    payloads = pair.send(1, tensors, [1, 1, 1])
    assert [payload.path for payload in payloads] == [HOST, IPC, HOST] and len(pair.under_way) == 1
    pair.expect(1, payloads)
    pair.release()
    assert pair.released == [1]  # it does not wait for the chunks
    pair.deliver()
    for sent, got in zip(tensors, arrived(pair, 1), strict=True):
        assert torch.equal(sent.cpu(), got)
    assert pair.released == [1]


def test_the_exporter_keeps_the_memory_until_it_has_been_read(device: RecordingDevice) -> None:
    pair = Pair(device)
    tensor = random_bytes(device, LARGE)
    payloads = pair.send(1, [tensor], [1])
    alive = weakref.ref(tensor)
    del tensor
    hold = device.hold(1)  # the target's, which the copy waits for
    pair.expect(1, payloads)
    assert 1 in pair.ready  # and the message goes on
    pair.release()
    gc.collect()
    assert alive() is not None and not pair.released
    hold.release()
    pair.release()
    gc.collect()
    assert alive() is None and pair.released == [1]
    arrived(pair, 1)


def test_the_importer_reads_behind_what_the_exporter_has_enqueued(device: RecordingDevice) -> None:
    pair = Pair(device)
    tensor = random_bytes(device, LARGE)
    hold = device.hold(device.current_stream(ZERO))
    tensor.fill_(7)
    pair.expect(1, pair.send(1, [tensor], [0]))
    assert 1 in pair.ready
    pair.release()
    assert not pair.released
    hold.release()
    pair.release()
    assert pair.released == [1] and arrived(pair, 1)[0].unique().tolist() == [7]


def test_kernels_of_the_importer_do_not_hold_it_up(device: RecordingDevice) -> None:
    """Neither on the default streams nor on those that functions run on."""
    pair = Pair(device)
    payloads = pair.send(1, [random_bytes(device, LARGE), random_bytes(device, LARGE)], [0, 1])
    busy = [torch.device("cuda", index) for index in (0, 1)]
    streams = [device.current_stream(d) for d in busy] + [
        device.new_stream(d) for d in busy for _ in range(8)
    ]
    holds = [device.hold(stream) for stream in streams]
    pair.expect(1, payloads)
    pair.release()
    assert pair.released == [1]
    for hold in holds:
        hold.release()
    arrived(pair, 1)


def test_what_comes_by_the_host_beside_it_waits_for_no_kernel(device: RecordingDevice) -> None:
    """It would keep pinned memory for as long, and a copy of ordinary memory blocks until its stream is done."""
    pair = Pair(device)
    kernel = device.new_stream(ZERO)
    hold = device.hold(kernel)
    with device.use([kernel]):
        large = random_bytes(device, LARGE)
        blob = pair.exports.export(1, large)
    assert blob is not None
    small = random_bytes(device, CHUNK)
    pair.expect(1, [Payload(LARGE, 0, IPC, blob), Payload(CHUNK, 0)])
    pair.departure(1, [large[:0], small]).run(pair.put, pair.failed.__setitem__)
    pair.deliver()
    assert pair.ready[1] and pair.receiver_pool.in_use == 1
    pair.timers.fire()
    assert pair.receiver_pool.in_use == 0
    hold.release()
    for sent, got in zip((large, small), arrived(pair, 1), strict=True):
        assert torch.equal(sent.cpu(), got)
    pair.release()


def test_what_other_streams_have_used_is_not_freed_once_the_device_has_failed(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch ends the process where it can record no event for it."""
    kept: list[object] = []
    monkeypatch.setattr(failed, "_kept", kept)
    pair = Pair(device)
    payloads = pair.send(1, [random_bytes(device, LARGE)], [0])
    broken = RuntimeError("CUDA error: device-side assert triggered")

    def fail(*args: object) -> None:
        monkeypatch.setattr(device, "record", fail)
        raise broken

    monkeypatch.setattr(device, "copy", fail)
    pair.expect(1, payloads)
    assert pair.refused[1] is broken
    [[target]] = kept
    assert target.nbytes == LARGE


def test_a_message_that_is_not_sent_shares_nothing(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(device)
    tensors = [(random_bytes(device, LARGE), 0), (random_bytes(device, SMALL), 0)]

    def fail(*args: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device, "new_stream", fail)  # for what goes by the host
    with pytest.raises(RuntimeError, match="CUDA error"):
        prepare(device, pair.pool, 1, tensors, pair.exports)
    assert not pair.exports.transfers and not pair.ipc.shared


@pytest.mark.parametrize("failing", ["device_of", "open"])
def test_what_cannot_be_opened_fails_the_transfer_and_is_released(
    device: RecordingDevice, failing: str
) -> None:
    pair = Pair(device)
    payloads = pair.send(1, [random_bytes(device, LARGE), random_bytes(device, 10)], [0, 1])
    pair.ipc.failures[failing] = error = RuntimeError("CUDA error: invalid resource handle")
    pair.expect(1, payloads)
    assert pair.refused == {1: error}
    pair.deliver()
    pair.release()
    assert pair.released == [1] and not pair.ipc.shared and not pair.arrivals.pending


@pytest.mark.parametrize("what", ["empty", "copy", "record"])
@pytest.mark.parametrize("step", range(6))
def test_a_failure_at_any_step_releases_what_is_shared(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    pair = Pair(device)
    tensors = [random_bytes(device, LARGE), random_bytes(device, LARGE, 1)]
    payloads = pair.send(1, tensors, [1, 1])
    refs = [weakref.ref(tensor) for tensor in tensors]
    del tensors
    error = RuntimeError("CUDA error")
    left = [step]
    real: Callable[..., object] = getattr(device, what)

    def failing(*args: object) -> object:
        left[0] -= 1
        if left[0] == -1:
            raise error
        return real(*args)

    monkeypatch.setattr(device, what, failing)
    pair.expect(1, payloads)
    monkeypatch.undo()
    assert len(pair.refused) + len(pair.ready) == 1
    pair.release()
    pair.release()
    gc.collect()
    assert pair.released == [1] and not pair.ipc.shared
    assert all(ref() is None for ref in refs)
    if pair.ready:
        arrived(pair, 1)


def test_a_size_that_is_not_the_payloads_fails_the_transfer(device: RecordingDevice) -> None:
    pair = Pair(device)
    payload = pair.send(1, [random_bytes(device, LARGE)], [0])[0]
    pair.expect(1, [payload._replace(size=10)])
    assert f"10 bytes shares {LARGE}" in str(pair.refused[1])
    pair.release()
    assert pair.released == [1]


def test_memory_that_cannot_be_shared_goes_by_the_host(device: RecordingDevice) -> None:
    pair = Pair(device)
    pair.ipc.failures["export"] = RuntimeError("came from another process")
    payloads = pair.send(1, [random_bytes(device, LARGE)], [0])
    assert payloads == [Payload(LARGE, 0)] and len(pair.under_way) == 1 and not pair.exports.transfers


def test_what_a_peer_that_is_gone_has_not_released_is_dropped(device: RecordingDevice) -> None:
    pair = Pair(device)
    tensor = random_bytes(device, LARGE)
    pair.send(1, [tensor], [0])
    pair.send(2, [tensor, tensor], [0, 1])
    assert pair.exports.transfers == 2 and len(pair.ipc.shared) == 3
    pair.exports.close()
    pair.exports.close()
    assert not pair.exports.transfers and not pair.ipc.shared
    assert pair.exports.export(3, tensor) is None and not pair.ipc.shared
    pair.exports.release(1)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.randoms(use_true_random=False),
)
def test_both_paths_in_any_order(messages: list[list[tuple[int, int, bool]]], choose: random.Random) -> None:
    with recording_device(3) as device:
        pair = Pair(device)
        expected = {}
        unannounced = []
        for transfer, message in enumerate(messages):
            tensors = [random_bytes(device, LARGE if large else 100, source) for source, _, large in message]
            expected[transfer] = [tensor.cpu() for tensor in tensors]
            unannounced.append((transfer, pair.send(transfer, tensors, [target for _, target, _ in message])))
            del tensors
        choose.shuffle(unannounced)
        while unannounced or pair.under_way:
            if unannounced and (not pair.under_way or choose.random() < 0.5):
                pair.expect(*unannounced.pop())
            else:
                pair.deliver_one(choose.randrange(len(pair.under_way)))
            if choose.random() < 0.3:
                pair.release()
        for transfer, tensors in expected.items():
            for before, got in zip(tensors, arrived(pair, transfer), strict=True):
                assert torch.equal(before, got)
        pair.release()
        assert not pair.ipc.shared and not pair.exports.transfers


# -- probes -----------------------------------------------------------------------------------------------


class Jobs(list[Callable[[], None]]):
    def run(self) -> None:
        while self:
            self.pop(0)()


def test_a_device_is_probed_once_and_works_when_its_content_is_read_back(device: RecordingDevice) -> None:
    ipc, jobs, asked = RecordingIpc(device), Jobs(), []

    def ask(blob: bytes) -> bytes:
        asked.append(blob)
        return answer_probe(device, ipc, blob)

    probes = Probes(device, ipc, ask, jobs.append)
    assert not probes.works(ZERO) and not probes.works(ZERO) and len(jobs) == 1
    jobs.run()
    assert probes.works(ZERO) and len(asked) == 1 and not ipc.shared
    assert not probes.works(torch.device("cuda", 1))  # is another one
    jobs.run()
    assert probes.works(torch.device("cuda", 1)) and not jobs


@pytest.mark.parametrize(
    "answer", [b"", bytes(32), RuntimeError("no device has it"), ConnectionError("the peer was lost")]
)
def test_a_device_that_cannot_be_read_back_does_not_work(
    device: RecordingDevice, answer: bytes | Exception
) -> None:
    ipc, jobs = RecordingIpc(device), Jobs()

    def ask(blob: bytes) -> bytes:
        if isinstance(answer, Exception):
            raise answer
        return answer

    probes = Probes(device, ipc, ask, jobs.append)
    assert not probes.works(ZERO)
    jobs.run()
    assert not probes.works(ZERO) and not jobs and not ipc.shared


@pytest.mark.parametrize("failing", ["export", "open", "device_of"])
def test_sharing_that_fails_does_not_work(device: RecordingDevice, failing: str) -> None:
    ipc, jobs = RecordingIpc(device), Jobs()
    ipc.failures[failing] = RuntimeError("CUDA error: invalid argument")
    probes = Probes(device, ipc, lambda blob: answer_probe(device, ipc, blob), jobs.append)
    probes.works(ZERO)
    jobs.run()
    assert not probes.works(ZERO) and not ipc.shared


def test_a_probe_of_another_size_is_refused(device: RecordingDevice) -> None:
    ipc = RecordingIpc(device)
    export = ipc.export(random_bytes(device, CHUNK))
    with pytest.raises(ValueError, match=f"{CHUNK} bytes"):
        answer_probe(device, ipc, export.blob)


# -- the checker finds what is left out -------------------------------------------------------------------


def test_memory_that_is_read_before_it_is_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = RecordingDevice()
    pair = Pair(device)
    tensor = random_bytes(device, LARGE)
    before = device.record(device.new_stream(ZERO))
    payloads = pair.send(1, [tensor], [0])
    monkeypatch.setattr(pair.ipc, "open", lambda blob: (tensor.detach(), before))
    pair.expect(1, payloads)
    assert "is not behind the write" in "".join(device.violations)


def test_memory_that_is_released_before_it_has_been_read_is_found() -> None:
    device = RecordingDevice()
    pair = Pair(device)
    tensor = random_bytes(device, LARGE)
    payloads = pair.send(1, [tensor], [0])
    del tensor
    pair.expect(1, payloads)
    pair.arrivals.close()
    pair.exports.release(1)
    pair.completions._waiting.clear()
    gc.collect()
    assert "is freed" in "".join(device.violations)

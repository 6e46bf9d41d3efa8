"""In a process of its own each: what is emulated is so for the rest of it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rpcgroup.cuda.runtime import current_runtime
from rpcgroup.cuda.sharing import answer_probe
from rpcgroup.testing.emulated_cuda import CYCLES_PER_SECOND, emulate_cuda
from rpcgroup.testing.recording_device import RecordingDevice

SECONDS = 60.0
DEVICES = 3

Check = Callable[[RecordingDevice], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


@check
def torch_finds_devices(device: RecordingDevice) -> None:
    assert torch.cuda.is_available()
    assert torch.accelerator.is_available()
    assert torch.cuda.device_count() == torch.accelerator.device_count() == DEVICES
    torch.cuda.init()


@check
def the_current_device_is_each_threads(device: RecordingDevice) -> None:
    assert torch.cuda.current_device() == 0
    with torch.cuda.device(2):
        assert torch.cuda.current_device() == 2
        assert torch.ones(1, device="cuda").device == torch.device("cuda", 2)
        assert torch.ones(1).cuda().device == torch.device("cuda", 2)
        assert torch.cuda.current_stream().device == torch.device("cuda", 2)
    torch.cuda.set_device("cuda:1")
    assert torch.cuda.current_device() == 1
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.cuda.set_device(DEVICES)


@check
def the_current_streams(device: RecordingDevice) -> None:
    stream = torch.cuda.Stream("cuda:1")
    assert stream != torch.cuda.Stream("cuda:1")
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream("cuda:1") == stream
        assert torch.cuda.current_device() == 1
        assert torch.cuda.current_stream("cuda:0") == torch.cuda.default_stream("cuda:0")
    assert torch.cuda.current_device() == 0
    assert torch.cuda.current_stream(1) == torch.cuda.default_stream(1)


@check
def what_is_not_ordered_is_found(device: RecordingDevice) -> None:
    x = torch.ones(2, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x.add_(1)
    line = device.violations[0]
    assert "add_" in line
    assert "test_emulated_cuda.py" in line


@check
def what_is_ordered_is_not(device: RecordingDevice) -> None:
    x = torch.ones(2, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x.add_(1)
        x.record_stream(side)  # type: ignore[arg-type]
        event = torch.cuda.Event()
        event.record()
    torch.cuda.current_stream().wait_event(event)
    assert x.tolist() == [2.0, 2.0]
    device.check()


@check
def a_sleep_takes_its_time(device: RecordingDevice) -> None:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before = time.monotonic()
    start.record()
    torch.cuda._sleep(int(1.0 * CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
    end.record()
    assert start.query()
    assert not end.query()
    assert not torch.cuda.current_stream().query()
    end.synchronize()
    assert end.query()
    assert time.monotonic() - before >= 1
    assert start.elapsed_time(end) >= 1000
    torch.cuda.synchronize()
    never = torch.cuda.Event()
    never.wait()
    never.synchronize()
    assert never.query()


@check
def modules_move_and_learn(device: RecordingDevice) -> None:
    layer = torch.nn.Linear(2, 2)
    plain = torch.nn.Linear(2, 2)
    plain.load_state_dict(layer.state_dict())
    weight = layer.weight
    assert layer.to("cuda:1").weight is weight  # as with CUDA: who refers to it has the moved one
    assert isinstance(weight, torch.nn.Parameter)
    assert weight.device == torch.device("cuda", 1)
    made_there = torch.nn.Linear(2, 2, device="cuda:2")
    assert made_there.bias.device == torch.device("cuda", 2)
    x = torch.ones(3, 2, requires_grad=True)
    y = torch.ones(3, 2, requires_grad=True)
    layer(x.cuda(1)).sum().backward()
    plain(y).sum().backward()
    assert x.grad is not None
    assert x.grad.device == torch.device("cpu")
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.weight.grad.cpu(), plain.weight.grad)  # type: ignore[union-attr]
    device.check()


@check
def factories(device: RecordingDevice) -> None:
    for made in (
        torch.zeros(2, 3, device="cuda:1"),
        torch.tensor([1, 2], device="cuda:1"),
        torch.arange(5, device="cuda:1"),
        torch.rand(2, device="cuda:1", requires_grad=True),
        torch.zeros_like(torch.ones(2), device="cuda:1"),
        torch.ones(2).to(torch.zeros(1, device="cuda:1")),
        torch.ones(2).to("cuda:1", torch.float64),
    ):
        assert made.device == torch.device("cuda", 1)
        assert made.is_cuda
        assert not made.cpu().is_cuda
    assert torch.empty(4, dtype=torch.uint8, device="cuda").tolist() == [0xCD] * 4  # nobody may rely on it
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(1).to("cuda:100")


@check
def the_products_runtime_is_that_of_cuda(device: RecordingDevice) -> None:
    runtime: Any = current_runtime()
    place = torch.device("cuda", 1)
    stream = runtime.new_stream(place)
    pinned = runtime.pinned(8)
    with runtime.use([stream]):
        source = torch.arange(8, dtype=torch.uint8, device=place)
        runtime.copy(pinned, source)
    assert torch.cuda.current_stream(place) == torch.cuda.default_stream(place)
    runtime.host_memory(pinned)
    assert len(device.violations) == 1  # it has not waited for the copy
    runtime.synchronize(runtime.record(stream))
    assert bytes(runtime.host_memory(pinned)) == bytes(range(8))
    assert len(device.violations) == 1


@check
def memory_is_shared_as_the_product_does_it(device: RecordingDevice) -> None:
    runtime: Any = current_runtime()
    ipc, place = runtime.ipc(), torch.device("cuda", 1)
    tensor = torch.arange(32, dtype=torch.uint8, device=place)
    export = ipc.export(tensor)
    assert answer_probe(runtime, ipc, export.blob) == bytes(range(32))
    export.end()
    device.check()


def run(function: Check) -> None:
    function(emulate_cuda(DEVICES))


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
def test_emulated(function: Check) -> None:
    process = multiprocessing.get_context("fork").Process(target=run, args=(function,))
    process.start()
    process.join(SECONDS)
    code = process.exitcode
    process.close()
    assert code == 0

from __future__ import annotations

import pickle
import threading

import pytest
import torch

from rpcgroup.testing.device_tensor import DeviceTensor, span_of
from rpcgroup.testing.recording_device import RecordingDevice
from rpcgroup.testing.stream_order import Span

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def device() -> RecordingDevice:
    """Not checked at its end: some of these tests want violations."""
    return RecordingDevice()


def test_for_python_it_is_on_its_device(device: RecordingDevice) -> None:
    tensor = device.tensor([[1.0, 2.0], [3.0, 4.0]], "cuda:1")
    assert (tensor.device, tensor.get_device(), tensor.is_cuda, tensor.is_cpu) == (ONE, 1, True, False)
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == ((2, 2), torch.float32, 16)
    assert repr(tensor).startswith("DeviceTensor(tensor([[1., 2.]")
    assert f"{tensor.sum():.1f}" == "10.0"


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[1:],
        lambda t: t.T,
        lambda t: t.view(torch.uint8),
        lambda t: t.as_strided((2,), (3,), 1),
        lambda t: t.detach(),
        lambda t: t.reshape(-1),
        lambda t: t.split(1)[0],
        lambda t: t.unbind()[1],
    ],
)
def test_a_view_has_the_memory_of_its_base_and_is_no_use(device: RecordingDevice, view: object) -> None:
    base = device.tensor(torch.arange(6.0).view(2, 3))
    with device.use([device.new_stream(ZERO)]):
        assert callable(view)
        got = view(base)
    assert type(got) is DeviceTensor
    assert got.device == ZERO
    assert got.block is base.block
    assert got.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    assert device.to_host(got).equal(view(torch.arange(6.0).view(2, 3)))
    device.check()


def test_ops_give_new_memory_on_the_same_device(device: RecordingDevice) -> None:
    tensor = device.tensor(torch.arange(6.0).view(2, 3), 1)
    for result in (
        tensor + 1,
        tensor.contiguous().clone(),
        tensor.T.contiguous(),
        torch.cat([tensor, tensor]),
    ):
        assert type(result) is DeviceTensor
        assert result.device == ONE
        assert result.block is not tensor.block
    assert tensor.contiguous() is tensor
    device.check()


def test_ops_in_place(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0, 2.0, 3.0])
    same = tensor
    tensor += 1
    tensor[1:].mul_(2)
    torch.add(tensor, 1, out=tensor)
    assert tensor is same
    assert device.to_host(tensor).tolist() == [3.0, 7.0, 9.0]
    device.check()


def test_what_only_asks_for_a_shape_is_no_use(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0])
    with device.use([device.new_stream(ZERO)]):
        assert torch.zeros_like(tensor).device == ZERO
        assert tensor.new_empty(3).device == ZERO
    device.check()


def test_a_place_may_be_named(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0])
    assert torch.ones_like(tensor, device=ZERO).device == ZERO
    assert torch.ones_like(tensor, device="cuda:1").device == ONE
    assert type(tensor.new_zeros(2, device="cpu")) is torch.Tensor


def test_tensors_of_two_devices_do_not_go_together(device: RecordingDevice) -> None:
    zero, one = device.tensor([1.0, 2.0]), device.tensor([1.0, 2.0], 1)
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cuda:1!"):
        zero + one
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu!"):
        zero + torch.ones(2)
    assert (zero + torch.ones(())).device == ZERO
    assert device.to_host(zero[torch.tensor([1])]).tolist() == [2.0]


def test_a_value_for_the_host_is_waited_for(device: RecordingDevice) -> None:
    side = device.new_stream(ZERO)
    tensor = device.tensor([1.0, 2.0])
    assert tensor.sum().item() == 3.0
    with device.use([side]):
        assert bool((tensor > 0).all())
        assert tensor.tolist() == [1.0, 2.0]
        assert torch.equal(tensor, tensor)
    device.check()


def test_numpy_is_for_the_host(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0, 2.0])
    with pytest.raises(TypeError, match=r"cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"):
        tensor.numpy()
    assert tensor.numpy(force=True).tolist() == [1.0, 2.0]


def test_moves(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0, 2.0])
    assert tensor.to(ZERO) is tensor
    assert tensor.to("cuda") is tensor
    assert tensor.to("cuda", copy=True) is not tensor
    assert tensor.to(torch.float64).dtype == torch.float64
    there = tensor.to("cuda:1", torch.int64)
    assert (there.device, there.dtype) == (ONE, torch.int64)
    assert tensor.to(there).device == ONE
    assert tensor.cuda(1).device == ONE
    up = torch.ones(1).to(there)
    assert (up.device, up.dtype, up.tolist()) == (ONE, torch.int64, [1])
    for host in (there.cpu(), there.to("cpu"), there.to(torch.ones(1))):
        assert type(host) is torch.Tensor
        assert host.tolist() == [1, 2]
    device.check()


def test_a_copy_between_devices_is_behind_both_streams_and_both_go_on_behind_it(
    device: RecordingDevice,
) -> None:
    source, target = device.tensor([1.0]), device.tensor([0.0], 1)
    target.add_(1)
    target.copy_(source)
    source.add_(1)
    target.add_(1)
    assert target.tolist() == [2.0]
    device.check()


def test_copies_from_and_to_the_hosts_memory(device: RecordingDevice) -> None:
    tensor, plain = device.tensor([1.0, 2.0]), torch.zeros(2)
    plain.copy_(tensor, non_blocking=True)
    assert plain.tolist() == [1.0, 2.0]
    pinned = device.pinned(8)
    pinned.view(torch.float32).copy_(tensor)
    device.host_memory(pinned)
    device.check()
    pinned.view(torch.float32).copy_(tensor, non_blocking=True)
    device.host_memory(pinned)
    assert len(device.violations) == 1


def test_the_host_waits_for_a_copy_into_its_own_memory(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0])
    hold = device.hold(ZERO)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(tensor.cpu()))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    hold.release()
    thread.join(10)
    assert not thread.is_alive()


def test_parameters_and_modules(device: RecordingDevice) -> None:
    linear = torch.nn.Linear(2, 1)
    weights = linear.weight.detach().clone()
    linear.weight = torch.nn.Parameter(device.tensor(weights))
    linear.bias = torch.nn.Parameter(device.tensor([0.5]))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        linear(device.tensor([[1.0, 2.0]])).sum().backward()
        optimizer.step()
    assert linear.weight.device == ZERO
    assert torch.allclose(device.to_host(linear.weight), weights - torch.tensor([[0.29, 0.58]]))
    device.check()


def test_it_is_not_pickled(device: RecordingDevice) -> None:
    with pytest.raises(TypeError, match="not pickled: DeviceTensor"):
        pickle.dumps([device.tensor([1.0])])


def test_what_changes_a_shape_in_place_is_not_covered(device: RecordingDevice) -> None:
    with pytest.raises(NotImplementedError, match="changes its shape"):
        device.tensor([1.0, 2.0]).unsqueeze_(0)


@pytest.mark.parametrize(
    ("tensor", "span"),
    [
        (torch.zeros(4), Span(0, 16)),
        (torch.zeros(4)[1:3], Span(4, 12)),
        (torch.zeros(3, 3)[:, 1], Span(4, 32)),
        (torch.zeros(4, dtype=torch.uint8)[2:2], Span(0, 0)),
        (torch.zeros(1).expand(5), Span(0, 4)),
    ],
)
def test_the_bytes_of_a_tensor(tensor: torch.Tensor, span: Span) -> None:
    assert span_of(tensor) == span

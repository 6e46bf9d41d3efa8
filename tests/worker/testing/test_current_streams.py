"""The engine's streams, by backward passes over tensors of a recording device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from rpcgroup.testing.recording_device import RecordingDevice

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def device() -> RecordingDevice:
    """Not checked at its end: some of these tests want violations."""
    return RecordingDevice()


def order(device: RecordingDevice, tensor: torch.Tensor, stream: object) -> None:
    """The stream behind what this thread's current one has to do, and the allocator told."""
    device.wait(stream, device.record(device.current_stream(tensor.device)))
    device.retain(tensor, stream)


class Double(torch.autograd.Function):
    """Notes the stream of its backward, which uses a side stream if `aside` has one."""

    ran_on: list[object]
    aside: Any = None
    waits = True

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.recorder = tensor.recorder
        return tensor * 2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        device = ctx.recorder
        (grad,) = grads
        here = device.current_stream(grad.device)
        Double.ran_on.append(here)
        if Double.aside is None:
            return grad * 2
        order(device, grad, Double.aside)
        with device.use([Double.aside]):
            result = grad * 2
            done = device.record(Double.aside)
        if Double.waits:
            device.wait(here, done)
        device.retain(result, here)
        return result


@pytest.fixture(autouse=True)
def no_side_stream() -> None:
    Double.ran_on, Double.aside, Double.waits = [], None, True


def test_a_pass_on_one_stream(device: RecordingDevice) -> None:
    leaf = device.tensor([1.0, 2.0]).requires_grad_()
    (leaf * leaf).sum().backward()
    (leaf * 3).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.device == ZERO
    assert device.to_host(leaf.grad).tolist() == [5.0, 7.0]
    device.check()


def forward_aside(device: RecordingDevice, leaf: torch.Tensor, side: object) -> torch.Tensor:
    """On a side stream; its result may be used on the current one."""
    order(device, leaf, side)
    with device.use([side]):
        result: torch.Tensor = Double.apply(leaf).exp()
        done = device.record(side)
    here = device.current_stream(leaf.device)
    device.wait(here, done)
    device.retain(result, here)
    return result


def test_a_node_runs_on_the_stream_of_its_forward_and_the_caller_goes_on_behind_it(
    device: RecordingDevice,
) -> None:
    leaf = device.tensor([0.0]).requires_grad_()
    side = device.new_stream(ZERO)
    result = forward_aside(device, leaf, side)
    result.backward(device.tensor([1.0]))
    assert Double.ran_on == [side]
    assert leaf.grad is not None
    assert device.to_host(leaf.grad).tolist() == [2.0]
    device.check()


def test_in_the_thread_that_calls_backward_with_other_current_streams(device: RecordingDevice) -> None:
    leaf = device.tensor([0.0]).requires_grad_()
    side, mine = device.new_stream(ZERO), device.new_stream(ZERO)
    result = forward_aside(device, leaf, side)
    order(device, result, mine)
    with device.use([mine]):
        (grad,) = torch.autograd.grad(result * 3, leaf, device.tensor([1.0]))
        assert grad.tolist() == [6.0]
        device.retain(grad, mine)
    assert Double.ran_on == [side]
    del grad
    device.check()


def test_a_gradient_that_is_handed_in_has_to_be_behind_the_callers_stream(device: RecordingDevice) -> None:
    leaf = device.tensor([0.0]).requires_grad_()
    side, other = device.new_stream(ZERO), device.new_stream(ZERO)
    result = forward_aside(device, leaf, side)
    with device.use([other]):
        grad = device.tensor([1.0])
    result.backward(grad)
    assert any("is not behind the write by tensor()" in line for line in device.violations)


def test_what_comes_out_is_behind_the_callers_streams_only(device: RecordingDevice) -> None:
    leaf = device.tensor([0.0]).requires_grad_()
    side, other = device.new_stream(ZERO), device.new_stream(ZERO)
    (grad,) = torch.autograd.grad(forward_aside(device, leaf, side), leaf, device.tensor([1.0]))
    with device.use([other]):
        grad + 1
    assert any("is not behind the write by aten.mul.Tensor" in line for line in device.violations)


@pytest.mark.parametrize("waits", [True, False])
def test_a_nodes_own_side_stream_is_not_the_engines(device: RecordingDevice, waits: bool) -> None:
    leaf = device.tensor([0.0]).requires_grad_()
    result = forward_aside(device, leaf, device.new_stream(ZERO))
    Double.aside, Double.waits = device.new_stream(ZERO), waits
    (grad,) = torch.autograd.grad(result, leaf, device.tensor([1.0]))
    assert grad.tolist() == [2.0]
    assert (device.violations == []) == waits


def test_branches_on_streams_of_their_own_join(device: RecordingDevice) -> None:
    leaf = device.tensor([0.0]).requires_grad_()
    branches = [forward_aside(device, leaf, device.new_stream(ZERO)) for _ in range(3)]
    torch.stack(branches).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [6.0]
    assert len(set(Double.ran_on)) == 3
    del branches, leaf
    device.check()


def test_a_graph_over_two_devices_and_the_host(device: RecordingDevice) -> None:
    zero, one = device.tensor([1.0]).requires_grad_(), device.tensor([2.0], 1).requires_grad_()
    product = zero.to(ONE) * one
    loss = product.cpu() * 3
    loss.sum().backward()
    assert zero.grad is not None
    assert one.grad is not None
    assert (zero.grad.device, zero.grad.tolist()) == (ZERO, [6.0])
    assert (one.grad.device, one.grad.tolist()) == (ONE, [3.0])
    device.check()


def test_a_pass_that_fails_leaves_the_threads_streams_as_they_were(device: RecordingDevice) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            grads[0] + 1
            raise ValueError("no gradient")

    leaf = device.tensor([0.0]).requires_grad_()
    side = device.new_stream(ZERO)
    order(device, leaf, side)
    with device.use([side]):
        result = Fails.apply(leaf) * 1
    order_back = device.record(side)
    here = device.current_stream(ZERO)
    device.wait(here, order_back)
    with pytest.raises(ValueError, match="no gradient"):
        result.backward(device.tensor([1.0]))
    assert device.current_stream(ZERO) is here
    (grad,) = torch.autograd.grad(
        forward_aside(device, leaf, device.new_stream(ZERO)), leaf, device.tensor([1.0])
    )
    grad + 1
    assert device.current_stream(ZERO) is here
    device.check()


def test_a_pass_within_a_pass(device: RecordingDevice) -> None:
    leaf = device.tensor([1.0]).requires_grad_()
    side = device.new_stream(ZERO)
    order(device, leaf, side)
    with device.use([side]):
        result = torch.utils.checkpoint.checkpoint(lambda t: Double.apply(t).exp(), leaf, use_reentrant=True)
    here = device.current_stream(ZERO)
    device.wait(here, device.record(side))
    device.retain(result, here)
    result.backward(device.tensor([1.0]))
    assert leaf.grad is not None
    assert torch.allclose(device.to_host(leaf.grad), 2 * torch.tensor([2.0]).exp())
    device.check()


def test_a_second_derivative(device: RecordingDevice) -> None:
    leaf = device.tensor([3.0]).requires_grad_()
    (first,) = torch.autograd.grad(leaf**3, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first, leaf)
    assert second.tolist() == [18.0]
    device.check()


def test_hooks_run_on_the_streams_of_their_node(device: RecordingDevice) -> None:
    leaf = device.tensor([1.0]).requires_grad_()
    side = device.new_stream(ZERO)
    order(device, leaf, side)
    seen = []
    with device.use([side]):
        middle = leaf * 2
        middle.register_hook(lambda grad: seen.append(device.current_stream(ZERO)))
        result = middle * 2
    device.wait(device.current_stream(ZERO), device.record(side))
    result.backward(device.tensor([1.0]))
    assert seen == [side]
    device.check()


@pytest.mark.parametrize("looks", [False, True])
def test_a_node_that_calls_the_engine_at_once(device: RecordingDevice, looks: bool) -> None:
    inside = device.tensor([1.0]).requires_grad_()
    prepared = forward_aside(device, inside, device.new_stream(ZERO))

    class Within(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
            return tensor + 1

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            with device.use([]) if looks else nullcontext():
                (grad,) = torch.autograd.grad(prepared, inside, grads[0])
            return grad.clone()

    leaf = device.tensor([1.0]).requires_grad_()
    side = device.new_stream(ZERO)
    order(device, leaf, side)
    with device.use([side]):
        result = Within.apply(leaf)
    last = device.new_stream(ZERO)
    device.wait(last, device.record(side))
    device.retain(result, last)
    with device.use([last]):
        result = result * 2
    here = device.current_stream(ZERO)
    device.wait(here, device.record(last))
    result.backward(device.tensor([1.0]))
    assert leaf.grad is not None
    assert torch.allclose(device.to_host(leaf.grad), 4 * torch.tensor([2.0]).exp())
    device.check()


def test_a_custom_function_is_marked_before_others_use_its_result(device: RecordingDevice) -> None:
    leaf = device.tensor([1.0]).requires_grad_()
    side = device.new_stream(ZERO)
    order(device, leaf, side)
    with device.use([side]):
        result = Double.apply(leaf)
    here = device.current_stream(ZERO)
    device.wait(here, device.record(side))
    device.retain(result, here)
    (result * 3).backward(device.tensor([1.0]))
    assert Double.ran_on == [side]
    device.check()


@pytest.mark.parametrize("root", [Double.apply, lambda t: t * 2], ids=["custom", "torch's"])
def test_an_engine_that_is_called_with_edges(device: RecordingDevice, root: Any) -> None:
    leaf = device.tensor([1.0]).requires_grad_()
    side = device.new_stream(ZERO)
    order(device, leaf, side)
    seen = []
    with device.use([side]):
        result = root(leaf)
    result.register_hook(lambda grad: seen.append(device.current_stream(ZERO)))
    edge = torch.autograd.graph.GradientEdge(result.grad_fn, result.output_nr)
    here = device.current_stream(ZERO)
    device.wait(here, device.record(side))
    (grad,) = torch.autograd.Variable._execution_engine.run_backward(
        (edge,), (device.tensor([1.0]),), False, False, (leaf,), allow_unreachable=True, accumulate_grad=False
    )
    assert seen == [side]
    assert grad.tolist() == [2.0]
    device.check()


def test_an_op_in_place_is_a_node_of_its_own_stream(device: RecordingDevice) -> None:
    leaf = device.tensor([1.0]).requires_grad_()
    middle = leaf * 2
    side = device.new_stream(ZERO)
    order(device, middle, side)
    seen = []
    with device.use([side]):
        middle.mul_(2)
    middle.register_hook(lambda grad: seen.append(device.current_stream(ZERO)))
    device.wait(device.current_stream(ZERO), device.record(side))
    middle.backward(device.tensor([1.0]))
    assert seen == [side]
    device.check()


def test_an_op_in_place_on_a_view_makes_a_node_for_its_base(device: RecordingDevice) -> None:
    leaf = device.tensor([1.0, 1.0]).requires_grad_()
    base = leaf * 2
    side = device.new_stream(ZERO)
    order(device, base, side)
    seen = []
    with device.use([side]):
        base[:1].mul_(2)
    base.register_hook(lambda grad: seen.append(device.current_stream(ZERO)))
    device.wait(device.current_stream(ZERO), device.record(side))
    base.backward(device.tensor([1.0, 1.0]))
    assert seen == [side]
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [4.0, 2.0]
    device.check()


def test_the_zeros_that_the_engine_makes_are_the_hosts_and_do(device: RecordingDevice) -> None:
    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> Any:
            return tensor * 2, tensor * 3

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            return grads[0] * 2 + grads[1] * 3

    leaf = device.tensor([1.0, 1.0]).requires_grad_()
    Both.apply(leaf)[0].backward(device.tensor([1.0, 1.0]))
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [2.0, 2.0]
    device.check()

from __future__ import annotations

import gc

import pytest
import torch

from rpcgroup.autograd import functions
from rpcgroup.autograd.functions import RecvInfo, Send, attach_recv, is_recv

INFO = RecvInfo(1, 2, 3, 2)


def test_received_tensors_are_outputs_of_one_node() -> None:
    node, (a, b) = attach_recv(INFO, [torch.ones(2), torch.ones(3, dtype=torch.float64)])
    assert a.grad_fn is node and b.grad_fn is node and is_recv(node)
    assert (a.output_nr, b.output_nr) == (0, 1)
    assert node.info == INFO
    assert node.name() == "torch::distributed::autograd::RecvRpcBackward"


def test_a_received_view_can_be_changed_in_place() -> None:
    _, (a, b) = attach_recv(INFO, [torch.ones(6).view(2, 3), torch.ones(4)[:2]])
    a.mul_(2)
    b.add_(1)
    assert a.sum() == 12 and b.sum() == 4


def test_the_local_backward_says_which_one_is_right() -> None:
    _, (a,) = attach_recv(INFO, [torch.ones(2)])
    with pytest.raises(RuntimeError, match="backward of distributed autograd"):
        a.sum().backward()


def test_a_send_knows_the_places_of_its_tensors() -> None:
    leaf = torch.ones(2, requires_grad=True)
    made = leaf * 2
    first, second = made.chunk(2)
    send = Send(1, [leaf, second, made])
    assert send.name() == "torch::distributed::autograd::SendRpcBackward"
    (accumulate, zero), (split, number), (mul, _) = send.next_functions
    assert accumulate.variable is leaf and zero == 0
    assert split is second.grad_fn and number == second.output_nr
    assert mul is made.grad_fn
    assert first.grad_fn is split


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_a_send_keeps_the_graph_and_not_the_data(layout: str) -> None:
    """The Python object of a custom function's node does not keep it, in older versions of torch."""
    value = torch.ones(3) if layout == "dense" else torch.eye(3).to_sparse()
    leaf = value.detach().requires_grad_()
    _, (received,) = attach_recv(INFO, [value])
    send = Send(1, [leaf, received])
    del received
    gc.collect()
    assert send.next_functions[0][0].variable is leaf
    assert send.next_functions[1][0].next_functions[0][0] is not None


def test_a_leaf_is_not_used_first_by_what_keeps_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch 2.15 that and another first use of the leaf can wait for each other, and with them all threads."""

    def keep_the_gil(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a custom Function is applied to a leaf")

    monkeypatch.setattr(functions._Owner, "apply", keep_the_gil)
    leaf = torch.ones(2, requires_grad=True)
    ((node, number),) = Send(7, [leaf]).next_functions
    assert node.variable is leaf and number == 0

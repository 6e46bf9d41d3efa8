from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rpcgroup.autograd.gradients import accumulate, fit, own


def metadata(*shape: int, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(shape=torch.Size(shape), dtype=dtype, is_nested_tensor=False)


def sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (3,), check_invariants=True)


def test_a_sum_changes_neither_part() -> None:
    first, second = torch.ones(2), torch.ones(2)
    assert accumulate(None, first) is first
    total = accumulate(first, second)
    assert total.tolist() == [2, 2] and first.tolist() == second.tolist() == [1, 1]


@pytest.mark.parametrize("dense_first", [True, False])
def test_dense_and_sparse(dense_first: bool) -> None:
    parts = [torch.ones(3), sparse()] if dense_first else [sparse(), torch.ones(3)]
    assert accumulate(*parts).tolist() == [2, 2, 1]
    assert accumulate(sparse(), sparse()).to_dense().tolist() == [2, 2, 0]


def test_a_gradient_is_summed_over_what_was_broadcast() -> None:
    assert fit(torch.ones(2, 3), metadata(1)).tolist() == [6]
    assert fit(torch.ones(2, 3), metadata(3)).tolist() == [2, 2, 2]


def test_a_gradient_gets_the_dtype_of_its_place() -> None:
    assert fit(torch.ones(2, dtype=torch.float64), metadata(2)).dtype is torch.float32
    real = fit(torch.tensor([1 + 2j]), metadata(1))
    assert real.dtype is torch.float32 and real.tolist() == [1]


def test_shapes_that_cannot_be_reconciled() -> None:
    with pytest.raises(RuntimeError):
        fit(torch.ones(2), metadata(3))


def test_a_leafs_gradient_shares_its_memory_with_no_other() -> None:
    leaf, grad, other = torch.ones(2), torch.ones(2), torch.ones(2)
    assert own([grad, other], [leaf, leaf], False) == [grad, other]
    both = own([grad, grad], [leaf, leaf], False)
    assert all(g is not None and g.data_ptr() != grad.data_ptr() for g in both)
    (one,) = own([grad, grad.view(2, 1)], [leaf], False)  # the other one is sent
    assert one is not None and one.data_ptr() != grad.data_ptr()
    (copied,) = own([grad], [leaf], True)
    assert copied is not None and copied.data_ptr() != grad.data_ptr()
    assert own([None], [leaf], False) == [None]


def test_a_gradient_that_is_not_dense_becomes_so() -> None:
    (grad,) = own([torch.ones(1).expand(3)], [torch.ones(3)], False)
    assert grad is not None and grad.is_contiguous()
    same_strides = torch.ones(2, 3).t()
    assert own([same_strides], [torch.ones(2, 3).t()], False)[0] is same_strides

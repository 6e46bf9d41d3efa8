from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from rpcgroup.autograd import ddp
from rpcgroup.testing.cluster import LocalCluster


@pytest.fixture
def process_group() -> Iterator[None]:
    """Of one process; the fake one leaves no sockets behind, as gloo's device does."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_a_reducers_gradients_go_to_the_context(process_group: None) -> None:
    """The two layers are in one bucket, and become ready in two stages of the pass."""
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    assert id(first.weight) not in ddp.parameters()
    wrapped = DistributedDataParallel(nn.ModuleDict({"first": first, "last": last}))
    assert {id(first.weight), id(last.weight)} <= ddp.parameters()
    reduced: list[int] = []

    def reduce(state, bucket):  # type: ignore[no-untyped-def]  # torch looks at annotations, and wants no strings
        reduced.append(len(bucket.gradients()))
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer() * 10)
        return future

    wrapped.register_comm_hook(None, reduce)
    x = torch.ones(1, 2)
    copies = [layer.weight.detach().clone().requires_grad_() for layer in (first, last)]
    ((x @ copies[0].t()) * 2 @ copies[1].t()).sum().backward()
    first.weight.grad = torch.full((2, 2), 7.0)
    with LocalCluster("ab") as cluster:
        a = cluster.agent("a")
        context = a.autograd.new_context()
        wrapped.reducer.prepare_for_forward()
        h = a.rpc_sync("b", double, (first(x),))
        wrapped.reducer.prepare_for_backward([])
        a.autograd.backward(context.id, [last(h).sum()], False)
        grads = context.gradients()
        a.autograd.release(context.id)
    assert sum(reduced) == 2
    for layer, copy in zip((first, last), copies, strict=True):
        assert copy.grad is not None
        torch.testing.assert_close(grads[layer.weight], copy.grad * 10)
    assert first.weight.grad.tolist() == [[7, 7], [7, 7]] and last.weight.grad is None

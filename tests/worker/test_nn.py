from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import rpcgroup as rpc
from rpcgroup import api, contract
from rpcgroup.nn import RemoteModule, parse_remote_device

_places = itertools.count()


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process is the one member of a group."""
    monkeypatch.setenv(contract.ENV_SECRET, "secret")
    rpc.init_rpc("w0", rank=0, init_method=f"memory://test-nn-{next(_places)}/default/g")
    yield "w0"
    if api._group is not None:
        rpc.shutdown()


class Scaled(nn.Module):
    def __init__(self, factor: float, bias: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))
        self.inner = nn.Linear(1, 1)
        self.bias = bias

    def forward(self, x: torch.Tensor, twice: bool = False) -> torch.Tensor:
        y = self.factor * x + self.bias
        return y * 2 if twice else y


def call(module: RemoteModule, x: torch.Tensor) -> Any:
    return module(x)


def test_it_is_called_as_a_local_module(member: str) -> None:
    module = RemoteModule("w0/cpu", Scaled, args=(3.0,), kwargs={"bias": 1.0})
    assert torch.equal(module(torch.ones(2)), torch.full((2,), 4.0))
    assert torch.equal(module(torch.ones(2), twice=True), torch.full((2,), 8.0))
    assert torch.equal(module.forward_async(torch.ones(1)).wait(), torch.full((1,), 4.0))
    assert (module.on, module.device, repr(module)) == ("w0", "cpu", "RemoteModule(on='w0', device='cpu')")


def test_its_parameters_are_references(member: str) -> None:
    module = RemoteModule("rank:0", Scaled, args=(3.0,))
    assert [tuple(p.to_here().shape) for p in module.remote_parameters()] == [(1,), (1, 1), (1,)]
    assert len(module.remote_parameters(recurse=False)) == 1
    assert isinstance(module.get_module_rref().local_value(), Scaled)


def test_training_is_that_of_the_module(member: str) -> None:
    module = RemoteModule("w0", Scaled, args=(3.0,))
    assert not module.eval().training
    assert not module.get_module_rref().local_value().training
    assert module.train().training
    assert module.get_module_rref().local_value().inner.training


def test_it_travels_as_a_reference(member: str) -> None:
    module = RemoteModule("w0", Scaled, args=(3.0,))
    assert torch.equal(rpc.rpc_sync("w0", call, (module, torch.ones(1))), torch.full((1,), 3.0))
    again = RemoteModule.init_from_module_rref("w0/cpu", module.get_module_rref())
    assert torch.equal(again(torch.ones(1)), torch.full((1,), 3.0))


@pytest.mark.parametrize("name", ["parameters", "state_dict", "cuda", "to", "register_forward_hook"])
def test_what_it_cannot_do_it_refuses(member: str, name: str) -> None:
    module = RemoteModule("w0", Scaled, args=(3.0,))
    with pytest.raises(ValueError, match=rf"Method ``{name}`` not supported for RemoteModule"):
        getattr(module, name)()


def test_a_class_that_makes_no_module(member: str) -> None:
    with pytest.raises(ValueError, match=r"must make an nn\.Module"):
        RemoteModule("w0", dict)(torch.ones(1))


@pytest.mark.parametrize("text", ["", "/cpu", "w0/", "w0/nowhere", "rank:x", "rank:0/cuda:x"])
def test_a_device_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="is no remote device: expected WORKER"):
        parse_remote_device(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ps", ("ps", "cpu")),
        ("ps/cuda:1", ("ps", "cuda:1")),
        ("rank:3/cpu", (3, "cpu")),
        ("a:b", ("a:b", "cpu")),
    ],
)
def test_devices(text: str, expected: tuple[object, str]) -> None:
    assert parse_remote_device(text) == expected

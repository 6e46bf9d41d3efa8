from __future__ import annotations

import pickle
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rpcgroup.cuda.extraction import device_tensors
from rpcgroup.futures import Future
from rpcgroup.testing.device_tensor import DeviceTensor
from rpcgroup.testing.recording_device import RecordingDevice, recording_device

Pair = namedtuple("Pair", "first second")


@dataclass
class Batch:
    data: Any
    more: dict[str, Any] = field(default_factory=dict)


class Plain:
    def __init__(self, held: Any) -> None:
        self.held = held

    def get(self) -> Any:
        return self.held


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


class Reduced:
    def __init__(self, held: Any) -> None:
        self._hidden = held

    def __reduce__(self) -> Any:
        return Reduced, (self._hidden,)


class Buffered:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Buffered, (pickle.PickleBuffer(bytearray(10)), self.held)


class NeverPickles:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __reduce__(self) -> Any:
        raise TypeError("not that")


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


def found(value: Any, device: RecordingDevice) -> list[int]:
    return sorted(map(id, device_tensors(value, device)))


def in_tuple(t: Any) -> Any:
    return 1, t, "x"


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda t: t,
    "tuple": in_tuple,
    "list": lambda t: [None, [t]],
    "dict": lambda t: {"a": 1.0, "b": {"c": t}},
    "key": lambda t: {t: 1},
    "set": lambda t: {t, 1},
    "ordered dict": lambda t: OrderedDict(a=t),
    "named tuple": lambda t: Pair(1, t),
    "dataclass": lambda t: Batch(1, {"x": [t]}),
    "object": lambda t: Plain(Plain(t)),
    "slots": Slotted,
    "reduce": Reduced,
    "beside a buffer": Buffered,
    "beside a lock": lambda t: Plain([threading.Lock(), t]),
    "beside what never pickles": lambda t: (NeverPickles(1), Plain([NeverPickles(1), t])),
    "beside a class and a module-level function": lambda t: Plain([Plain, in_tuple, len, t]),
    "closure": lambda t: [lambda: t],
    "default": lambda t: Plain(lambda x=t: x),
    "method": lambda t: Plain(t).get,
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_it_is_found(device: RecordingDevice, kind: str) -> None:
    tensor = device.tensor([1.0])
    assert found(CONTAINERS[kind](tensor), device) == [id(tensor)]


def test_each_is_found_once_on_every_device(device: RecordingDevice) -> None:
    one, two = device.tensor([1.0], 0), device.tensor([2.0], 1)
    assert found([one, two, one, Plain([two, one])], device) == sorted([id(one), id(two)])


def test_values_that_hold_themselves(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0])
    ring: list[Any] = [tensor]
    ring.append(ring)
    loop = Plain(tensor)
    loop.held = [loop, tensor]
    assert found((ring, loop), device) == [id(tensor)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "x",
        torch.ones(3),
        [torch.ones(3)],
        Plain(torch.ones(3)),
        Batch(torch.float32),
        NeverPickles(1),
        Plain,
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_is_found_where_there_is_nothing(device: RecordingDevice, value: Any) -> None:
    assert device_tensors(value, device) == []


def test_a_future_does_not_contain_its_value(device: RecordingDevice) -> None:
    future: Future[Any] = Future()
    future.set_result(device.tensor([1.0]))
    theirs: torch.futures.Future[Any] = torch.futures.Future()
    assert device_tensors([future, theirs, Plain([future, theirs])], device) == []


def test_what_never_pickles_is_passed_over_with_what_it_holds(device: RecordingDevice) -> None:
    """As the docstring says; an RRef does so, and stands for the whole of its agent."""
    assert device_tensors(NeverPickles(device.tensor([1.0])), device) == []


def test_too_deep_for_a_pickle_gives_what_was_found_until_then(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0])
    deep: Any = Plain(None)
    for _ in range(100_000):
        deep = Plain(deep)
    assert found([tensor, deep], device) == [id(tensor)]
    while deep is not None:  # without the recursion of a destructor
        deep = deep.held


def test_no_data_is_copied(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*_: Any) -> Any:
        raise AssertionError("pickled")

    for kind in (DeviceTensor, torch.Tensor, torch.UntypedStorage):
        monkeypatch.setattr(kind, "__reduce_ex__", copied)
    tensor, plain = device.tensor([1.0]), torch.ones(3)
    assert found(Plain([plain.untyped_storage(), Plain(plain), Plain(tensor)]), device) == [id(tensor)]


def test_a_module_gives_its_parameters_and_buffers(device: RecordingDevice) -> None:
    module = torch.nn.Linear(2, 1)
    weight, bias = device.tensor([[1.0, 2.0]]), device.tensor([1.0])
    del module.weight, module.bias
    module.weight, module.bias = weight, bias  # type: ignore[assignment]
    assert found(module, device) == sorted([id(weight), id(bias)])


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_a_sparse_tensor_is_given_as_its_strided_parts(
    device: RecordingDevice, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator is told of memory, and a sparse tensor has none. The recording device has none of them."""
    sparse = torch.tensor([[0.0, 1.0], [2.0, 0.0]], requires_grad=True).to_sparse(layout=layout)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(device, "tensor_type", torch.Tensor)
    parts = device_tensors([sparse], device)
    monkeypatch.undo()
    assert all(part.layout is torch.strided for part in parts)
    assert len(parts) == (2 if layout is torch.sparse_coo else 3)
    assert sorted(parts[-1].tolist()) == [1.0, 2.0]

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from rpcgroup.compat.rpc.internal import (
    PythonUDF,
    RPCExecMode,
    _build_rpc_profiling_key,
    _internal_rpc_pickler,
    deserialize,
    serialize,
)


def gone() -> None:
    pass


class Nested:
    """Serializes something while it is serialized itself."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getstate__(self) -> Any:
        return serialize([self.tensor])

    def __setstate__(self, state: Any) -> None:
        (self.tensor,) = deserialize(*state)


class Odd:
    pass


def test_tensors_are_beside_the_bytes() -> None:
    tensor = torch.ones(1000)
    data, table = serialize(PythonUDF(min, (tensor, 2), {"key": tensor}))
    assert len(data) < 500
    assert table[0] is tensor
    udf = deserialize(data, table)
    assert udf.func is min
    assert udf.args[0] is udf.kwargs["key"] is tensor


def test_one_within_another_has_a_table_of_its_own() -> None:
    outer, inner = torch.ones(2), torch.zeros(3)
    there = deserialize(*serialize((outer, Nested(inner), outer)))
    assert there[0] is outer
    assert torch.equal(there[1].tensor, inner)


def test_a_scripted_module_travels() -> None:
    module = torch.jit.script(torch.nn.Linear(2, 2))
    there = deserialize(*serialize(module))
    assert torch.equal(there(torch.ones(2)), module(torch.ones(2)))


def test_a_function_that_is_not_there_is_an_error_that_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    data, table = serialize(gone)
    monkeypatch.delitem(globals(), "gone")
    error = deserialize(data, table)
    assert isinstance(error, AttributeError)
    assert "Default RPC pickler does not serialize" in str(error)


def test_the_first_reducer_of_a_class_counts() -> None:
    _internal_rpc_pickler._register_reducer(Odd, lambda odd: (int, ("3",)))
    _internal_rpc_pickler._register_reducer(Odd, lambda odd: (int, ("4",)))
    assert deserialize(*serialize(Odd())) == 3


def test_what_cannot_be_pickled_leaves_nothing_behind() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        serialize(lambda: None)
    assert deserialize(*serialize([1])) == [1]


def test_the_key_of_a_profile_names_all_there_is_to_know() -> None:
    assert _build_rpc_profiling_key(RPCExecMode.SYNC, "f", "a", "b") == "rpc_sync#f(a -> b)"

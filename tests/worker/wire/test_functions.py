from __future__ import annotations

import functools
import math
import operator
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

from rpcgroup.errors import SerializationError
from rpcgroup.wire import functions
from rpcgroup.wire.functions import FunctionNumbers, describe_function, load_function, main_identity


def module_level(x: int) -> int:
    return x + 1


class Model:
    @staticmethod
    def static(x: int) -> int:
        return x

    @classmethod
    def made(cls) -> Model:
        return cls()

    def method(self) -> None: ...


def closure() -> Any:
    x = 1
    return lambda: x


@pytest.mark.parametrize(
    "function", [module_level, math.sqrt, operator.add, torch.add, Model, Model.static, torch.nn.Linear, len]
)
def test_what_has_a_name_gets_a_number_and_comes_back(function: Any) -> None:
    numbers = FunctionNumbers()
    assert numbers.next_number(function) == 1
    assert numbers.get(function) is None, "not before its definition is queued"
    numbers.publish(function, 1)
    assert numbers.get(function) == 1
    assert load_function(describe_function(function, by_value=False)) is function


@pytest.mark.parametrize(
    "function",
    [lambda: 1, closure(), functools.partial(module_level, 1), Model().method, Model.made],
    ids=["lambda", "closure", "partial", "bound", "classmethod"],
)
def test_what_carries_state_gets_none(function: Any) -> None:
    assert FunctionNumbers().next_number(function) == 0


def test_numbers_are_counted_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "MAX_FUNCTIONS", 2)
    numbers = FunctionNumbers()
    for expected, function in [(1, len), (2, max), (0, min)]:
        number = numbers.next_number(function)
        assert number == expected
        if number:
            numbers.publish(function, number)


def test_a_function_that_the_callee_cannot_import() -> None:
    gone = describe_function(module_level, by_value=False).replace(b"module_level", b"module_l3v3l")
    with pytest.raises(AttributeError, match="must be importable under the same module name"):
        load_function(gone)
    with pytest.raises(AttributeError, match="No module named"):
        load_function(pickle.dumps(math.sqrt).replace(b"math", b"m_th"))


def test_what_is_not_callable_is_refused() -> None:
    with pytest.raises(SerializationError, match="expected a function to call, got int: 3"):
        functions.require_callable(3)


def test_two_processes_without_a_program_do_not_run_the_same() -> None:
    """Else one would name functions of its `__main__` that the other does not have."""
    code = "from rpcgroup.wire.functions import main_identity; print(main_identity())"
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=100, text=True)
        for _ in range(2)
    )
    assert first.stdout.strip()
    assert first.stdout != second.stdout


def test_one_process_is_one_program() -> None:
    assert main_identity() == main_identity() != ""

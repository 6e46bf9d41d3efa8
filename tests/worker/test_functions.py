from __future__ import annotations

import pickle
from typing import Any

from rpcgroup.agent.session import Function
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future


@async_execution
def module_level(x: int) -> Future[int]:
    """What it says."""
    future: Future[int] = Future()
    future.set_result(x)
    return future


class Worker:
    @staticmethod
    @async_execution
    def static(x: int) -> Any:
        return module_level(x)

    @classmethod
    @async_execution
    def of_class(cls, x: int) -> Any:
        return module_level(x)

    @async_execution
    def method(self, x: int) -> Any:
        return module_level(x)


def test_it_is_called_as_before_and_looks_as_before() -> None:
    assert module_level(3).wait() == 3
    assert module_level.__name__ == "module_level"
    assert module_level.__doc__ == "What it says."
    assert pickle.loads(pickle.dumps(module_level)) is module_level


def test_the_callee_knows_it() -> None:
    for function in (module_level, Worker.static, Worker.of_class, Worker().method):
        assert Function(function, None).is_async
        assert function(3).wait() == 3
    assert not Function(len, None).is_async

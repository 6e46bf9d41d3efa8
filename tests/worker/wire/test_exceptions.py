from __future__ import annotations

import pickle

import pytest

from rpcgroup.errors import CallTimeoutError, OwnerDiedError
from rpcgroup.wire.exceptions import describe_exception, rebuild_exception

WHERE = "WorkerInfo(id=3, name=c)"


class TwoArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code


class OwnText(Exception):
    def __init__(self, *args: object) -> None:
        self.code = args[0]

    def __str__(self) -> str:
        return f"code {self.code}"


class FixedText(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__("always the same why")


class NeedsMore(Exception):
    def __new__(cls, first: str, second: str) -> NeedsMore:
        return super().__new__(cls, first, second)


class BrokenRepr(Exception):
    def __repr__(self) -> str:
        raise ZeroDivisionError


class Slotted(ValueError):
    __slots__ = ("code",)


def caught(exc: BaseException) -> BaseException:
    """With a traceback, as one that was raised."""
    try:
        raise exc
    except BaseException as raised:
        return raised


def travelled(exc: BaseException) -> BaseException:
    return rebuild_exception(describe_exception(caught(exc), WHERE))


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("why"),
        KeyError("why"),
        OSError(2, "why"),
        TwoArguments(7, "why"),
        OwnText("why"),
        FixedText("why"),
        Slotted("why"),
        CallTimeoutError("why"),
        OwnerDiedError("why"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_its_own_type_and_where_it_was_raised(exc: Exception) -> None:
    there = travelled(exc)
    assert isinstance(there, type(exc))
    text = str(there)
    assert "On WorkerInfo(id=3, name=c):" in text
    assert "why" in text
    assert "in caught" in text  # the remote traceback


def test_what_torchs_programs_catch() -> None:
    for exc in (KeyError("why"), OSError(2, "why"), ZeroDivisionError("why"), StopIteration("why")):
        there = travelled(exc)
        assert isinstance(there, RuntimeError)
        assert isinstance(there, type(exc))
        assert type(there).__name__ == type(exc).__name__
    assert type(travelled(ValueError("why"))) is ValueError
    assert type(travelled(TypeError("why"))) is TypeError


def test_one_with_a_constructor_of_its_own_is_a_runtime_error_too() -> None:
    there = travelled(TwoArguments(7, "why"))
    assert isinstance(there, TwoArguments)
    assert isinstance(there, RuntimeError)
    assert "Original exception on remote side was TwoArguments" in str(there)
    again = travelled(there)
    assert isinstance(again, TwoArguments)
    assert type(there).__qualname__ == "TwoArguments"


def test_line_breaks_in_the_repr_are_line_breaks() -> None:
    assert "ValueError('one\ntwo ä €')" in str(travelled(ValueError("one\ntwo ä €")))


def test_the_text_begins_with_the_worker_and_the_repr() -> None:
    lines = str(travelled(ValueError("why"))).splitlines()
    assert lines[0] == f"On {WHERE}:"
    assert lines[1] == "ValueError('why')"
    assert lines[2] == "Traceback (most recent call last):"


@pytest.mark.parametrize(
    "exc", [NeedsMore("why", "?"), UnicodeDecodeError("utf-8", b"x", 0, 1, "why")], ids=["new", "C"]
)
def test_a_type_that_cannot_be_rebuilt_is_a_runtime_error_that_says_so(exc: Exception) -> None:
    there = travelled(exc)
    assert type(there) is RuntimeError
    assert str(there).startswith(f"On {WHERE}:")
    assert f"of type {type(exc).__name__}, which cannot be rebuilt by the caller" in str(there)


def test_a_type_without_a_name_to_import_is_a_runtime_error() -> None:
    class Local(Exception):
        pass

    there = travelled(Local("why"))
    assert type(there) is RuntimeError
    assert "Local" in str(there)
    assert "not importable here" in str(there)


def test_a_type_that_is_gone_at_the_caller_is_a_runtime_error() -> None:
    kind = pickle.dumps(TwoArguments, 5).replace(b"TwoArguments", b"NoArguments_")
    there = rebuild_exception(pickle.dumps((kind, "NoArguments_", "text"), 5))
    assert type(there) is RuntimeError
    assert "text" in str(there)


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_the_caller_does_not(exc: BaseException) -> None:
    there = travelled(exc)
    assert type(there) is RuntimeError
    assert type(exc).__name__ in str(there)


def test_a_repr_that_fails() -> None:
    there = travelled(BrokenRepr("why"))
    assert "BrokenRepr, whose repr failed: ZeroDivisionError" in there.args[0]


def test_an_exception_that_passes_many_workers_grows_by_a_line_each() -> None:
    exc = travelled(KeyError("why"))
    first = len(exc.args[0])
    for n in range(1000):
        exc = rebuild_exception(describe_exception(caught(exc), f"WorkerInfo(id={n}, name=w)"))
    assert isinstance(exc, KeyError)
    assert exc.args[0].startswith(f"On {WHERE}:")
    assert exc.args[0].endswith("passed on by WorkerInfo(id=999, name=w)")
    assert len(exc.args[0]) < first + 1000 * 60


def test_an_exception_from_another_keeps_both() -> None:
    remote = travelled(KeyError("inner"))
    try:
        try:
            raise remote
        except KeyError as exc:
            raise ValueError("outer") from exc
    except ValueError as exc:
        there = rebuild_exception(describe_exception(exc, "WorkerInfo(id=4, name=d)"))
    assert type(there) is ValueError
    assert str(there).startswith("On WorkerInfo(id=4, name=d):\nValueError('outer')")
    assert "inner" in str(there)

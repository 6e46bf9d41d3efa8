from __future__ import annotations

import threading
from typing import Any

import pytest

from rpcgroup.errors import SerializationError
from rpcgroup.wire.codec import Codec


class Config:
    def __init__(self) -> None:
        self.name = "c"
        self.callbacks = {"start": [], "end": [len, threading.Lock()]}


class Cyclic:
    def __init__(self) -> None:
        self.me = self
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ((1, Config()), r" \(at Config\.callbacks\['end'\]\[1\], a lock\)$"),
        (([1, (threading.Lock(),)],), r" \(at list\[1\]\[0\], a lock\)$"),
        (((), {"x": threading.Lock()}), r" \(at dict\['x'\], a lock\)$"),
        (({1, threading.Lock()},), r" \(at set\{\.\.\.\}, a lock\)$"),
        ((threading.Lock(),), r"cannot pickle '_thread\.lock' object$"),
    ],
    ids=["attribute", "list", "keyword", "set", "itself"],
)
def test_the_error_says_where_it_is(values: tuple[Any, ...], at: str) -> None:
    with pytest.raises(SerializationError, match=at):
        Codec().encode(values)


def test_what_contains_itself_is_not_searched_for_ever() -> None:
    with pytest.raises(SerializationError, match=r" \(at Cyclic\.lock, a lock\)"):
        Codec().encode((Cyclic(),))


def test_the_reason_stands_there_once() -> None:
    with pytest.raises(SerializationError) as raised:
        Codec().encode(([threading.Lock()],))
    assert str(raised.value).count("cannot pickle") == 1

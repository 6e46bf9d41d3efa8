"""Each thread's current streams, and those that torch's autograd engine would make current during a backward pass.

For C++ the tensors of the recording device are the CPU's, so the engine runs a pass in the thread that called it and
does nothing about streams. What it does for CUDA's is done here: a node runs on the streams its forward ran on; these
wait for the caller's current streams, as they were at the call, and for the nodes that have been run before; behind
the pass the caller's current streams wait for all of its nodes.

Source: PyTorch's notes on CUDA semantics, "Stream semantics of backward passes".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

__all__ = ["CurrentStreams"]

S = TypeVar("S")

_KEY = "rpcgroup.testing.streams"


@dataclass(eq=False)
class _Mark(Generic[S]):
    """On a node: the streams that were current when it was made, None where they are not known."""

    streams: Mapping[torch.device, S] | None


@dataclass(eq=False)
class _Pass(Generic[S]):
    """A backward pass that the thread is in."""

    number: int
    callers: Mapping[torch.device, S]
    """The current streams of whoever has called the engine."""
    engines: Mapping[torch.device, S]
    """Those that the engine has made current for the node."""
    streams: Mapping[torch.device, S]
    """The current ones."""
    behind: dict[S, Any]
    """The latest event of each stream that the next node is behind."""
    mark: _Mark[S] | None = None
    """Of the node that is being run."""
    entered: set[S] = field(default_factory=set)
    """Streams that the node has used."""
    finished: bool = False


class _Local(threading.local):
    def __init__(self, defaults: Mapping[torch.device, Any]) -> None:
        self.streams = defaults
        self.passes: list[_Pass[Any]] = []


class CurrentStreams(Generic[S]):
    def __init__(
        self,
        defaults: Mapping[torch.device, S],
        record: Callable[[S], Any],
        wait: Callable[[S, Any], None],
    ) -> None:
        """`record(stream)` gives an event that `wait(stream, event)` takes."""
        self._local = _Local(defaults)
        self._record = record
        self._wait = wait

    def get(self, device: torch.device) -> S:
        pass_ = self._follow_engine()
        if pass_ is None:
            return self._local.streams[device]  # type: ignore[no-any-return]
        self._enter(pass_, device)
        return pass_.streams[device]

    def all(self) -> Mapping[torch.device, S]:
        pass_ = self._follow_engine()
        return self._local.streams if pass_ is None else pass_.streams

    def put(self, streams: Mapping[torch.device, S]) -> None:
        pass_ = self._follow_engine()
        if pass_ is None:
            self._local.streams = streams
        else:
            pass_.streams = streams

    def mark(self, node: Any, streams: Mapping[torch.device, S]) -> None:
        """The node and those it leads to were made with these as the current ones, where that is not known yet."""
        self._follow_engine()
        unmarked = [node]
        while unmarked:
            node = unmarked.pop()
            if node is not None and _KEY not in node.metadata:
                node.metadata[_KEY] = _Mark(streams)
                unmarked.extend(following for following, _ in node.next_functions)

    def in_backward(self) -> bool:
        return self._follow_engine() is not None

    def is_engines(self, stream: S) -> bool:
        """This thread runs a node, and the engine has made the stream current for it."""
        pass_ = self._follow_engine()
        return pass_ is not None and pass_.mark is not None and stream in pass_.entered

    def _follow_engine(self) -> _Pass[S] | None:
        """The pass that this thread is in, with its node's streams as the current ones."""
        number: int = torch._C._current_graph_task_id()
        passes = self._local.passes
        while passes and passes[-1].number != number and (number == -1 or self._is_among(number)):
            passes.pop()  # it has failed
        if number == -1:
            return None
        if not passes or passes[-1].number != number:
            started = self._start(number)
            passes.append(started)
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._finish(started))
        pass_ = passes[-1]
        self._enter_node(pass_)
        return pass_

    def _start(self, number: int) -> _Pass[S]:
        callers = self._local.streams
        if self._local.passes:  # a node has called the engine
            outer: _Pass[S] = self._local.passes[-1]
            callers = outer.streams
            for device in callers:
                self._enter(outer, device)
        behind = {stream: self._record(stream) for stream in callers.values()}
        return _Pass(number, callers, callers, callers, behind)

    def _is_among(self, number: int) -> bool:
        return any(pass_.number == number for pass_ in self._local.passes)

    def _enter_node(self, pass_: _Pass[S]) -> None:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            self._finish(pass_)
            return
        mark = node.metadata.get(_KEY)
        if mark is None:
            mark = node.metadata[_KEY] = _Mark(None)
        if mark is not pass_.mark:
            self._leave_node(pass_)
            pass_.mark = mark
            pass_.streams = pass_.engines = mark.streams or pass_.callers

    def _enter(self, pass_: _Pass[S], device: torch.device) -> None:
        """The engine's stream waits, before the node uses it; one that the node's own code has put there does not."""
        stream = pass_.streams[device]
        if stream is pass_.engines[device] and stream not in pass_.entered:
            pass_.entered.add(stream)
            for event in pass_.behind.values():
                self._wait(stream, event)

    def _leave_node(self, pass_: _Pass[S]) -> None:
        for stream in pass_.entered:
            pass_.behind[stream] = self._record(stream)
        pass_.entered.clear()
        pass_.mark, pass_.streams, pass_.engines = None, pass_.callers, pass_.callers

    def _finish(self, pass_: _Pass[S]) -> None:
        if pass_.finished:
            return
        pass_.finished = True
        self._leave_node(pass_)
        for stream in pass_.callers.values():
            for event in pass_.behind.values():
                self._wait(stream, event)

"""The functions that peers call by number, and what a request says of them: which one, with which arguments."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from rpcgroup.agent.link import KEYWORDS
from rpcgroup.agent.monitor import TICK
from rpcgroup.agent.session import Function, Session
from rpcgroup.errors import DrainedError, RemoteProtocolError
from rpcgroup.wire.forms import FORMAT_MASK
from rpcgroup.wire.frames import Body, Frame
from rpcgroup.wire.functions import load_function

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent

__all__ = ["CalleeFunctions"]

DEFINITION_SECONDS: Final = 1.0
"""How long a call waits for the definition that another thread has read."""


class CalleeFunctions:
    """Of one agent. Each session has numbers of its own; what they stand for is shared."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._codec = agent.codec
        self._loaded: dict[Any, Function] = {}

    def define(self, session: Session, frame: Frame) -> None:
        """DEFINE_FUNCTION: what a number of this channel stands for. It is loaded by the first call."""
        _, _, _, number, _, body = frame
        session.functions[number] = Function(None, body.data if body is not None else b"")

    def decode(
        self, session: Session, flags: int, number: int, body: Body | None, pending: list[Any]
    ) -> tuple[Function, tuple[Any, ...], dict[str, Any] | None]:
        """The function and its arguments; what has to be confirmed first is put into `pending`."""
        values: tuple[Any, ...] = ()
        if flags:
            receive = partial(self._receive, session, pending)
            values = self._codec.decode(flags & FORMAT_MASK, body, receive, session.adopt)
        if self._agent.refuses_calls:
            raise DrainedError(f"{self._agent.name} is leaving and did not run the call: try another worker")
        if not number:
            call, args, kwargs = values
            return Function(call), args, kwargs
        function = session.functions.get(number)
        if function is None or function.call is None:
            function = self._load(session, number)
        if flags & KEYWORDS:
            args, kwargs = values
            return function, args, kwargs
        return function, values, None

    def _load(self, session: Session, number: int) -> Function:
        """The function of a definition; raises what loading it raises."""
        deadline = time.monotonic() + DEFINITION_SECONDS
        while (function := session.functions.get(number)) is None:
            # It came before this call; the thread that took it was a leader until a moment ago.
            if time.monotonic() > deadline:
                raise RemoteProtocolError(f"function number {number} was never defined on this channel")
            time.sleep(TICK)
        if function.call is None:
            call = load_function(function.description)
            function = session.functions[number] = self._loaded.setdefault(call, Function(call))
        return function

    def _receive(self, session: Session, pending: list[Any], forks: list[Any]) -> list[Any]:
        references, unconfirmed = session.forks.receive(forks)
        if unconfirmed is not None:
            pending.append(unconfirmed)
        return list(references)

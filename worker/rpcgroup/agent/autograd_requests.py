"""What a worker does for others' autograd contexts and backward passes, besides their calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rpcgroup.agent.device_requests import events_of
from rpcgroup.agent.session import Session
from rpcgroup.autograd.messages import head_of, read_head, unwrap
from rpcgroup.wire.exceptions import rebuild_exception
from rpcgroup.wire.forms import FORMAT_MASK
from rpcgroup.wire.frames import Frame
from rpcgroup.wire.messages import MessageType

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent

__all__ = ["AutogradRequests"]

_log = logging.getLogger(__name__)


class AutogradRequests:
    """Of one agent. `fail` answers a request with an error."""

    def __init__(self, agent: Agent, fail: Callable[[Session, int, BaseException], None]) -> None:
        self._agent = agent
        self._codec = agent.codec
        self._fail = fail

    def handlers(self) -> dict[MessageType, Callable[[Session, Frame], None]]:
        return {
            MessageType.BACKWARD_AUTOGRAD_REQ: self._backward_request,
            MessageType.BACKWARD_AUTOGRAD_RESP: self._backward_outcome,
            MessageType.CLEANUP_AUTOGRAD_CONTEXT_REQ: self._cleanup_request,
            MessageType.AUTOGRAD_CONTEXT_QUERY: self._context_query,
        }

    def _backward_request(self, session: Session, frame: Frame) -> None:
        """Gradients of tensors sent from here. What becomes of them is told to the caller of the pass."""
        _, flags, _, _, _, body = frame
        try:
            head = head_of(body)
        except BaseException:
            _log.exception("gradients from %s could not be used", session.peer.name)
            return
        assert body is not None
        autograd, on_devices = self._agent.autograd, self._agent.on_devices
        decode = partial(self._codec.decode, flags & FORMAT_MASK, unwrap(body))
        try:
            if on_devices is None:
                autograd.on_propagation(head, decode())
            else:
                autograd.on_propagation(head, *on_devices.brought(events_of(frame), decode))
        except BaseException as exc:
            autograd.report(head, exc)

    def _backward_outcome(self, session: Session, frame: Frame) -> None:
        """What became of a part of a pass that was called here."""
        _, flags, id, _, _, body = frame
        session.begin(id)
        try:
            head, outcome = self._codec.decode(flags & FORMAT_MASK, body)
            if isinstance(outcome, bytes):
                outcome = rebuild_exception(outcome)
            self._agent.autograd.on_outcome(read_head(head), outcome)
        except BaseException:
            _log.exception("the outcome of a backward pass from %s could not be used", session.peer.name)
        session.answer_nothing(id)  # also then: to be told it again would not help

    def _cleanup_request(self, session: Session, frame: Frame) -> None:
        _, flags, id, _, _, body = frame
        session.begin(id)
        try:
            head = read_head(self._codec.decode(flags & FORMAT_MASK, body)[0])
            self._agent.autograd.on_cleanup(head.context_id, session.peer.incarnation)
        except BaseException as exc:
            self._fail(session, id, exc)
        else:
            session.answer_nothing(id)

    def _context_query(self, session: Session, frame: Frame) -> None:
        _, flags, id, _, _, body = frame
        session.begin(id)
        try:
            head = read_head(self._codec.decode(flags & FORMAT_MASK, body)[0])
            session.answer_value(id, self._agent.autograd.has(head.context_id))
        except BaseException as exc:
            self._fail(session, id, exc)

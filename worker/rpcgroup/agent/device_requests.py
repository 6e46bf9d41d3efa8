"""Requests whose tensors are for devices: held back until those are there, and the messages that bring them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from rpcgroup.agent.accelerator import Accelerator
from rpcgroup.agent.session import Session
from rpcgroup.autograd.messages import head_of, unwrap
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.sharing import answer_probe
from rpcgroup.errors import RemoteProtocolError, RpcGroupError
from rpcgroup.wire.forms import FORMAT_MASK
from rpcgroup.wire.frames import Body, Frame
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.payloads import ON_DEVICE

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent

__all__ = ["DeviceRequests", "events_of"]

WITH_TENSORS: Final = (
    MessageType.PYTHON_CALL,
    MessageType.SCRIPT_CALL,
    MessageType.PYTHON_REMOTE_CALL,
    MessageType.SCRIPT_REMOTE_CALL,
    MessageType.FORWARD_AUTOGRAD_REQ,
    MessageType.BACKWARD_AUTOGRAD_REQ,
)
"""What can bring tensors for devices."""

Handler = Callable[[Session, Frame], None]


class DeviceRequests:
    """Of one agent in a process with devices. `decline` lets go of what a request brought, `fail` answers it."""

    def __init__(
        self,
        agent: Agent,
        accelerator: Accelerator,
        decline: Callable[[Session, int, Body | None], None],
        fail: Callable[[Session, int, BaseException], None],
    ) -> None:
        self._agent = agent
        self._accelerator = accelerator
        self._decline = decline
        self._fail = fail

    def handlers(self, plain: Mapping[MessageType, Handler]) -> dict[int, Handler]:
        """`plain` has those of the requests without what they bring for devices."""
        held: dict[int, Handler] = {
            kind | ON_DEVICE: partial(self._hold, plain[kind]) for kind in WITH_TENSORS
        }
        return held | {
            MessageType.TENSOR_CHUNK: self._tensor_chunk,
            MessageType.TENSOR_FAILED: self._tensor_failed,
            MessageType.TENSOR_RELEASE: self._tensor_release,
            MessageType.IPC_PROBE: self._ipc_probe,
        }

    def _hold(self, handler: Handler, session: Session, frame: Frame) -> None:
        """A request whose tensors are on their way."""
        id = frame[2]
        assert session.transfers is not None
        if id:
            session.begin(id)
        try:
            session.transfers.hold(
                frame, partial(handler, session), partial(self._drop, session), session.borrow
            )
        except RemoteProtocolError as exc:
            self._disconnect(session, exc)

    def _drop(self, session: Session, frame: Frame, error: BaseException) -> None:
        """Its tensors do not come."""
        kind, flags, id, _, _, body = frame
        if kind == MessageType.BACKWARD_AUTOGRAD_REQ:
            self._agent.autograd.report(head_of(body), error)
        else:
            if kind == MessageType.FORWARD_AUTOGRAD_REQ and body is not None:
                body = unwrap(body)
            self._fail(session, id, error)
            self._decline(session, flags, body)

    def _tensor_chunk(self, session: Session, frame: Frame) -> None:
        assert session.transfers is not None
        try:
            session.transfers.on_chunk(frame)
        except RemoteProtocolError as exc:
            self._disconnect(session, exc)

    def _tensor_failed(self, session: Session, frame: Frame) -> None:
        assert session.transfers is not None
        session.transfers.on_failed(frame)

    def _tensor_release(self, session: Session, frame: Frame) -> None:
        assert session.transfers is not None
        session.transfers.on_release(frame)

    def _ipc_probe(self, session: Session, frame: Frame) -> None:
        """Answered by a thread that may wait for a device."""
        session.begin(frame[2])
        self._agent.chores.submit(partial(self._answer_probe, session, frame))

    def _answer_probe(self, session: Session, frame: Frame) -> None:
        _, flags, id, _, _, body = frame
        assert session.transfers is not None
        runtime, ipc = self._accelerator.runtime, session.transfers.ipc
        try:
            if ipc is None:
                raise RpcGroupError("this worker opens no memory of others")
            blob = self._agent.codec.decode(flags & FORMAT_MASK, body)[0]
            session.answer_value(id, answer_probe(runtime, ipc, blob))
        except BaseException as exc:
            self._fail(session, id, exc)
        session.channel.flush()

    def _disconnect(self, session: Session, error: RemoteProtocolError) -> None:
        self._agent.reactor.unwatch(session)
        session.broke(error)


def events_of(frame: Frame) -> Events | None:
    """Of the tensors that came with it."""
    body = frame[5]
    return body.events if body is not None else None

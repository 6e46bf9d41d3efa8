"""What a callee does for each type of request: one handler for each, called by the reactor.

A handler must not raise, and answers each request once. Functions that are known to be slow, and calls whose
references are not confirmed yet, are run by the pool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import torch

from rpcgroup.agent.autograd_port import ForwardedSession
from rpcgroup.agent.autograd_requests import AutogradRequests
from rpcgroup.agent.callee_functions import CalleeFunctions
from rpcgroup.agent.device_requests import DeviceRequests, events_of
from rpcgroup.agent.monitor import TICK
from rpcgroup.agent.serving import run_served, servings
from rpcgroup.agent.session import Function, Session
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.autograd.messages import head_of, unwrap
from rpcgroup.errors import (
    CallTimeoutError,
    RemoteProtocolError,
    RpcGroupError,
    SerializationError,
)
from rpcgroup.rref.uses import AsyncResult
from rpcgroup.wire.exceptions import describe_exception, rebuild_exception
from rpcgroup.wire.forms import FORMAT_MASK
from rpcgroup.wire.frames import Body, Frame
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.scripts import is_scripted

if TYPE_CHECKING:
    from rpcgroup.agent.accelerator import Accelerator
    from rpcgroup.agent.agent import Agent

__all__ = ["Invocation"]

QUICK: Final = TICK / 4
"""Seconds: a run in the pool that stays below takes one off what its function owes."""

WRAPPED: Final = frozenset(
    (
        MessageType.PYTHON_CALL,
        MessageType.SCRIPT_CALL,
        MessageType.PYTHON_REMOTE_CALL,
        MessageType.SCRIPT_REMOTE_CALL,
        MessageType.PYTHON_RREF_FETCH_CALL,
        MessageType.SCRIPT_RREF_FETCH_CALL,
    )
)
"""What a request within an autograd context can be."""

_log = logging.getLogger(__name__)


class Invocation:
    """The callee's side of one agent; `handlers` is the dispatch table."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._codec = agent.codec
        self._functions = CalleeFunctions(agent)
        self.served = 0
        """Calls whose function has run; may miss some under concurrent runs, it is a statistic."""
        self.on_failure: Callable[[BaseException], None] = lambda exc: None
        """Told of each error before it is answered."""
        handlers: dict[MessageType, Callable[[Session, Frame], None]] = {
            MessageType.PYTHON_CALL: self._python_call,
            MessageType.SCRIPT_CALL: self._python_call,
            MessageType.PYTHON_REMOTE_CALL: self._remote_call,
            MessageType.SCRIPT_REMOTE_CALL: self._remote_call,
            MessageType.PYTHON_RREF_FETCH_CALL: self._fetch,
            MessageType.SCRIPT_RREF_FETCH_CALL: self._fetch,
            MessageType.RREF_USER_DELETE: self._reference_message,
            MessageType.RREF_CHILD_ACCEPT: self._reference_message,
            MessageType.RREF_FORK_REQUEST: self._reference_message,
            MessageType.FORWARD_AUTOGRAD_REQ: self._forward_request,
            **AutogradRequests(agent, self.fail).handlers(),
            MessageType.DEFINE_FUNCTION: self._functions.define,
            MessageType.CANCEL: self._cancel,
            MessageType.GOODBYE: self._goodbye,
        }
        self.handlers: dict[int, Callable[[Session, Frame], None]] = {int(k): h for k, h in handlers.items()}
        if agent.accelerator is not None:
            self.handlers.update(
                DeviceRequests(agent, agent.accelerator, self.decline, self.fail).handlers(handlers)
            )

    # -- functions ----------------------------------------------------------------------------------------

    def _python_call(self, session: Session, frame: Frame) -> None:
        _, flags, id, number, _, _ = frame
        session.begin(id)
        function = session.functions.get(number)
        if function is not None and function.slow:
            self._run_later(session, frame, self._run)
        elif (
            function is not None
            and function.plain
            and not flags
            and not self._agent.refuses_calls
            and self._agent.on_devices is None
        ):
            self._call(session, id, function, (), None)  # nothing to decode
        else:
            self._run(session, frame)

    def _remote_call(self, session: Session, frame: Frame) -> None:
        _, _, id, number, _, _ = frame
        session.begin(id)
        function = session.functions.get(number)
        if function is not None and function.slow:
            self._run_later(session, frame, self._run_remote)
        else:
            self._run_remote(session, frame)

    def _run_later(self, session: Session, frame: Frame, run: Callable[[Session, Frame], None]) -> None:
        session.waiting[frame[2]] = True
        self._agent.pool.submit(partial(self._run_queued, session, frame, session.read_time, run))

    def _run_queued(
        self, session: Session, frame: Frame, arrived: float, run: Callable[[Session, Frame], None]
    ) -> None:
        _, flags, id, number, timeout_ms, body = frame
        if session.waiting.pop(id, None) is None:
            self.decline(session, flags, body)  # cancelled, and answered by that
            return
        started = time.monotonic()
        if timeout_ms and (started - arrived) * 1000 > timeout_ms:
            self.decline(session, flags, body)
            what = f"RPC ran for more than set timeout ({timeout_ms} ms)"
            late = f"{what}: dropped by {self._agent.name}, which had not begun it"
            self.fail(session, id, CallTimeoutError(late))
        else:
            run(session, frame)
        session.channel.flush()
        function = session.functions.get(number)
        if function is not None and function.slow and time.monotonic() - started < QUICK:
            function.slow -= 1

    def decline(self, session: Session, flags: int, body: Body | None) -> None:
        """What a request brought that nobody will look at."""
        session.forks.decline(self._codec.references_in(flags, body))

    def _run(self, session: Session, frame: Frame) -> None:
        """Decode, wait for its references, call, answer."""
        on_devices = self._agent.on_devices
        if on_devices is None:
            self._run_here(session, frame)
        else:
            self._run_in_order(on_devices, session, frame, self._run_here)

    def _run_in_order(
        self, on_devices: Accelerator, session: Session, frame: Frame, run: Callable[[Session, Frame], None]
    ) -> None:
        """On streams behind the tensors that the frame has brought; a device that has failed has none."""
        with ExitStack() as entered:
            try:
                entered.enter_context(on_devices.streams(events_of(frame)))
            except BaseException as exc:
                _, flags, id, _, _, body = frame
                self.decline(session, flags, body)
                self.fail(session, id, exc)
                return
            run(session, frame)

    def _run_here(self, session: Session, frame: Frame) -> None:
        _, flags, id, number, _, body = frame
        pending: list[Any] = []
        try:
            function, args, kwargs = self._functions.decode(session, flags, number, body, pending)
        except BaseException as exc:
            self.fail(session, id, exc)
            return
        if pending:
            call = partial(self._call, session, id, function, args, kwargs)
            self._when_confirmed(session, id, pending, self._resumed(frame, (args, kwargs), call))
        else:
            self._call(session, id, function, args, kwargs)

    def _call(
        self,
        session: Session,
        id: int,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
    ) -> None:
        call = function.call
        assert call is not None
        if servings:
            call = partial(run_served, call)
        on_devices = self._agent.on_devices
        finished = on_devices.finished if on_devices is not None else None
        try:
            if session.context is not None:
                result = self._call_within(session.context, call, args, kwargs)
            else:
                result = call(*args, **kwargs) if kwargs else call(*args)
            self.served += 1
            if function.is_async:
                self._answer_when_done(session, id, _as_future(result, function.call), (args, kwargs))
            elif type(result) is AsyncResult:
                self._answer_when_done(session, id, _as_future(result.future, None), (args, kwargs))
            elif result is None:
                if finished is not None:
                    finished()
                session.answer_nothing(id)
            else:
                session.answer_value(id, result, finished)
        except BaseException as exc:
            if finished is not None:
                finished()
            self.fail(session, id, exc)

    def _answer_when_done(
        self, session: Session, id: int, result: torch.futures.Future[Any], used: Any
    ) -> None:
        """The function was an `async_execution`: its future's value is the answer."""

        def answer(done: torch.futures.Future[Any]) -> None:
            try:
                session.answer_value(id, done.wait())
            except BaseException as exc:
                self.fail(session, id, exc)
            session.channel.flush()

        self._when_done(result, used, answer)

    def _when_done(
        self,
        result: torch.futures.Future[Any],
        used: Any,
        then: Callable[[torch.futures.Future[Any]], None],
    ) -> None:
        """`then(result)`; until then the tensors that the function has been given are kept on their devices.

        It hands them to callbacks, and these run on streams that neither the function nor the allocator knows of.
        """
        on_devices = self._agent.on_devices
        kept = None
        if on_devices is not None:
            kept = on_devices.events_of(used)
            on_devices.finished()

        def done(result: torch.futures.Future[Any]) -> None:
            if kept is not None:
                try:
                    kept.wait()
                except Exception:
                    pass  # a device has failed, which the result tells
            then(result)

        result.add_done_callback(done)

    def _resumed(self, frame: Frame, values: Any, run: Callable[[], None]) -> Callable[[], None]:
        """`run` for another thread, in the order of devices, with the values of the frame."""
        on_devices, events = self._agent.on_devices, events_of(frame)
        if on_devices is None:
            return run
        return on_devices.resumed((events.tensors if events is not None else (), values), run)

    def _when_confirmed(self, session: Session, id: int, pending: list[Any], run: Callable[[], None]) -> None:
        """Run in the pool once the owners of its references know of them."""
        session.waiting[id] = True

        def confirmed(error: BaseException | None) -> None:
            if session.waiting.pop(id, None) is None:
                return
            if error is not None:
                self.fail(session, id, error)
            else:
                run()
            session.channel.flush()

        self._agent.references.when_confirmed(
            pending[0], lambda error: self._agent.pool.submit(partial(confirmed, error))
        )

    # -- references ---------------------------------------------------------------------------------------

    def _run_remote(self, session: Session, frame: Frame) -> None:
        """Own what the function returns, under the id that the caller made up."""
        on_devices = self._agent.on_devices
        if on_devices is None:
            self._run_remote_here(session, frame)
        else:
            self._run_in_order(on_devices, session, frame, self._run_remote_here)

    def _run_remote_here(self, session: Session, frame: Frame) -> None:
        _, flags, id, number, _, body = frame
        references, on_devices = self._agent.references, self._agent.on_devices
        pending: list[Any] = []
        try:
            function, values, kwargs = self._functions.decode(session, flags, number, body, pending)
            creation, bounds_function, args = values[0], values[1], values[2:]
            rref = references.accept_remote(creation, session.peer.incarnation)
        except BaseException as exc:
            self.fail(session, id, exc)
            return
        if not bounds_function:
            session.answer_nothing(id)

        def answer() -> None:
            if bounds_function:
                session.answer_nothing(id)
                session.channel.flush()

        def fail(exc: BaseException) -> None:
            references.set_error(rref, self._as_remote_error(exc))
            answer()

        def own_result(done: Any) -> None:
            try:
                value = done.wait()
            except BaseException as exc:
                fail(exc)
            else:
                references.set_value(rref, value)
                answer()

        def run() -> None:
            try:
                assert function.call is not None
                call = partial(run_served, function.call) if servings else function.call
                if session.context is not None:
                    value = self._call_within(session.context, call, args, kwargs)
                else:
                    value = call(*args, **(kwargs or {}))
                self.served += 1
                if type(value) is AsyncResult:
                    self._when_done(_as_future(value.future, None), (args, kwargs), own_result)
                elif function.is_async:
                    self._when_done(_as_future(value, function.call), (args, kwargs), own_result)
                else:
                    if on_devices is not None and on_devices.events_of(value) is None:
                        on_devices.finished()
                    references.set_value(rref, value)
                    answer()
            except BaseException as exc:
                if on_devices is not None:
                    on_devices.finished()
                fail(exc)

        if pending:
            resumed = self._resumed(frame, (args, kwargs), run)

            def confirmed(error: BaseException | None) -> None:
                self._agent.pool.submit(resumed if error is None else partial(fail, error))

            references.when_confirmed(pending[0], confirmed)
        else:
            run()

    def _as_remote_error(self, exc: BaseException) -> BaseException:
        return rebuild_exception(self._describe(exc))

    def _fetch(self, session: Session, frame: Frame) -> None:
        """`to_here`: answered when the value is there; occupies no thread until then."""
        _, flags, id, _, _, body = frame
        session.begin(id)

        def answer(value: Any, error: BaseException | None) -> None:
            try:
                if error is not None:
                    raise error
                session.answer_value(id, value)
            except BaseException as exc:
                self.fail(session, id, exc)
            session.channel.flush()

        try:
            payload = self._codec.decode(flags & FORMAT_MASK, body)[0]
            self._agent.references.when_owner_value(payload, session.peer.incarnation, answer)
        except BaseException as exc:
            self.fail(session, id, exc)

    def _reference_message(self, session: Session, frame: Frame) -> None:
        kind, flags, id, _, _, body = frame
        session.begin(id)
        try:
            payload = self._codec.decode(flags & FORMAT_MASK, body)[0]
            self._agent.references.on_message(MessageType(kind), payload, session.peer.incarnation)
        except BaseException as exc:
            self.fail(session, id, exc)
        else:
            session.answer_nothing(id)

    # -- distributed autograd -----------------------------------------------------------------------------

    def _forward_request(self, session: Session, frame: Frame) -> None:
        """A request within an autograd context."""
        _, flags, id, number, timeout_ms, body = frame
        try:
            head = head_of(body)
            if head.kind not in WRAPPED:
                raise RemoteProtocolError(f"message type {head.kind} is not one of an autograd context")
            context = self._agent.autograd.introduce(head.context_id, head.origin, session.peer.incarnation)
        except BaseException as exc:
            session.begin(id)
            self.fail(session, id, exc)
            return
        assert body is not None
        if context is not None:
            session = cast("Session", ForwardedSession(session, context, head))
        self.handlers[head.kind](session, (head.kind, flags, id, number, timeout_ms, unwrap(body)))

    def _call_within(
        self,
        context: DistAutogradContext,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
    ) -> Any:
        """The thread is in that context while the function runs."""
        thread = self._agent.thread
        outer = thread.context
        thread.context = context
        try:
            return call(*args, **(kwargs or {}))
        finally:
            thread.context = outer

    # -- the channel's own --------------------------------------------------------------------------------

    def _cancel(self, session: Session, frame: Frame) -> None:
        _, _, id, _, _, _ = frame
        if session.waiting.pop(id, None) is not None:
            session.answer_nothing(id)  # nobody waits for it; it settles the books

    def _goodbye(self, session: Session, frame: Frame) -> None:
        session.leaving = True
        self._agent.on_goodbye(session.peer.incarnation)
        self._agent.chores.submit(session.close)

    def refuse(self, session: Session, frame: Frame) -> None:
        kind, _, id, _, _, _ = frame
        try:
            name = MessageType(kind).name
        except ValueError:
            name = f"number {kind}"
        session.begin(id)
        self.fail(session, id, RpcGroupError(f"message type {name} is not handled by this worker"))

    def fail(self, session: Session, id: int, exc: BaseException) -> None:
        """Answer with it."""
        session.answer_exception(id, self._describe(exc))

    def _describe(self, exc: BaseException) -> bytes:
        self.on_failure(exc)
        return describe_exception(exc, self._agent.where)


def _as_future(result: Any, function: Any) -> torch.futures.Future[Any]:
    """What `function`, decorated with `async_execution`, returned; a scripted one returns a future of torch's C++."""
    if isinstance(result, torch.futures.Future):
        return result
    returned = type(result).__name__
    if is_scripted(getattr(function, "_wrapped_async_rpc_function", None)):
        raise SerializationError(f"Async functions must return an IValue of Future type, but got {returned}")
    raise SerializationError(
        "Functions decorated with @rpc.async_function must return a torch.futures.Future object, "
        f"this one returned {returned}"
    )

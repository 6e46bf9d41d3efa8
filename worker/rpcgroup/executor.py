"""A `concurrent.futures.Executor` whose workers are whoever is in the group."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rpcgroup.errors import DrainedError, GroupError, PeerUnreachableError, UnknownWorkerError
from rpcgroup.futures import Future
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.tracker import Change, ChangeKind
from rpcgroup.wire.exceptions import is_remote

if TYPE_CHECKING:
    from rpcgroup.changes import Changes
    from rpcgroup.group import Group

__all__ = ["GroupExecutor"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
QUEUE_LIMIT: Final = 100_000
"""Tasks that wait for a worker; `submit` raises beyond."""


class _Result(concurrent.futures.Future[Any]):
    """Of a task. Whoever takes it out waits for the devices that its tensors are on, as of a call's future."""

    answer: Future[Any] | None = None

    def result(self, timeout: float | None = None) -> Any:
        value = super().result(timeout)
        return value if self.answer is None else self.answer.wait()


class _Task:
    __slots__ = ("args", "function", "future", "kwargs", "retry")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], retry: bool
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.retry = retry
        self.future = _Result()


class GroupExecutor(concurrent.futures.Executor):
    """Gives each free member (of a role, never this worker itself) the next task.

    Tasks wait while nobody is there. The task of a worker that refused it, because it is leaving, goes to another.
    The task of a worker that died may have run: it goes to another only with `retry=True` and fails with
    `PeerUnreachableError` otherwise.
    """

    def __init__(self, group: Group, role: str | None, tasks_per_worker: int) -> None:
        self._group = group
        self._role = role
        self._limit = tasks_per_worker
        self._lock = threading.Lock()  # guards everything below
        self._free: dict[str, int] = {}
        """Of each member that may be given tasks: how many it may be given now."""
        self._queue: deque[_Task] = deque()
        self._running = 0
        self._closed = False
        self._said = False
        self._left = False
        """This worker has left the group."""
        self._idle = threading.Condition(self._lock)
        self._changes: Changes = group.changes()
        for member in group.members(role):
            self._add(member)
        self._thread = threading.Thread(target=self._follow, name="rpcgroup-executor", daemon=True)
        self._thread.start()  # joined by shutdown

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        return self._submit(_Task(fn, args, kwargs, False))

    def submit_retrying(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """As `submit`, for a function that may run twice: a dead worker's task goes to another."""
        return self._submit(_Task(fn, args, kwargs, True))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        retry: bool = False,
    ) -> Iterator[T]:
        """As `Executor.map`, with `retry`; results in the order of the arguments."""
        submit = self.submit_retrying if retry else self.submit
        futures = [submit(fn, *args) for args in zip(*iterables, strict=False)]
        return self._results(futures, timeout)

    def _results(self, futures: list[concurrent.futures.Future[T]], timeout: float | None) -> Iterator[T]:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for future in futures:
                self._group.agent.reactor.step_aside()
                yield future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            for future in futures:
                future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more tasks; `wait` for those submitted, or cancel those that have not started."""
        with self._lock:
            self._closed = True
            cancelled = list(self._queue) if cancel_futures else []
            if cancel_futures:
                self._queue.clear()
        for task in cancelled:
            if not task.future.cancel():  # a worker had refused it
                task.future.set_exception(concurrent.futures.CancelledError())
        if wait:
            self._group.agent.reactor.step_aside()
            with self._idle:
                self._idle.wait_for(lambda: not self._queue and not self._running)
        self._end_if_idle()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def _end_if_idle(self) -> None:
        """Closed, and nothing to do any more: let the thread end."""
        with self._lock:
            idle = self._closed and not self._queue and not self._running
        if idle:
            self._changes.close()

    # -- who may be given tasks ---------------------------------------------------------------------------

    def _follow(self) -> None:
        for change in self._changes:
            self._apply(change)
        with self._lock:
            self._left = True
            left = list(self._queue)
            self._queue.clear()
            self._idle.notify_all()
        for task in left:
            self._give_up(task)

    def _apply(self, change: Change) -> None:
        if change.kind is ChangeKind.JOINED:
            with self._lock:
                self._add(change.member)
        else:
            with self._lock:
                self._free.pop(change.member.name, None)
        self._dispatch()

    def _add(self, member: MemberRecord) -> None:
        usable = member.state is MemberState.READY and member.name != self._group.name
        if usable and (self._role is None or member.role == self._role):
            self._free.setdefault(member.name, self._limit)

    # -- tasks --------------------------------------------------------------------------------------------

    def _submit(self, task: _Task) -> concurrent.futures.Future[Any]:
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot submit a task after shutdown")
            if self._left:
                raise GroupError("this worker has left the group: its executor takes no more tasks")
            if len(self._queue) >= QUEUE_LIMIT:
                raise GroupError(
                    f"{QUEUE_LIMIT} tasks are waiting for a worker: take results before submitting more"
                )
            self._queue.append(task)
            nobody = not self._free and not self._running
        if nobody:
            self._say_that_tasks_wait()
        self._dispatch()
        return task.future

    def _say_that_tasks_wait(self) -> None:
        """Once: a role may be misspelt, or its workers may be on their way."""
        if not self._said:
            self._said = True
            roles = sorted({m.role for m in self._group.members() if m.name != self._group.name})
            wanted = f"of role {self._role!r} " if self._role else ""
            _log.warning(
                "tasks wait: no other member %sis ready; roles that others have: %s",
                wanted,
                ", ".join(roles) or "none",
            )

    def _dispatch(self) -> None:
        while True:
            with self._lock:
                name = max(self._free, key=lambda n: self._free[n], default="")
                if not self._queue or not name or not self._free[name]:
                    return
                task = self._queue.popleft()
                self._free[name] -= 1
                self._running += 1
            if task.future.running() or task.future.set_running_or_notify_cancel():
                self._start(task, name)
            else:
                self._release(name)

    def _start(self, task: _Task, name: str) -> None:
        """Give the task to a worker. Called by `_dispatch`, which goes on with the next one."""
        try:
            future = self._group.agent.rpc_async(name, task.function, task.args, task.kwargs, 0)
        except (DrainedError, PeerUnreachableError, UnknownWorkerError):
            self._again(task)
            self._release(name, gone=True)
        except BaseException as exc:
            task.future.set_exception(exc)
            self._release(name)
        else:
            future.add_done_callback(partial(self._answered, task, name))

    def _answered(self, task: _Task, name: str, done: Future[Any]) -> None:
        gone = False
        try:
            value = done.value()
        except BaseException as exc:
            refused = isinstance(exc, DrainedError) and f"{name} is leaving" in str(exc)
            lost = isinstance(exc, PeerUnreachableError) and not is_remote(exc)
            gone = refused or lost
            if refused or (lost and task.retry):
                self._again(task)
            else:
                task.future.set_exception(exc)
        else:
            task.future.answer = done
            task.future.set_result(value)
        self._release(name, gone)
        self._dispatch()

    def _again(self, task: _Task) -> None:
        """It has not run, or may run again: next in turn, on another worker."""
        with self._lock:
            if not self._left:
                self._queue.appendleft(task)
                return
        self._give_up(task)

    def _give_up(self, task: _Task) -> None:
        if task.future.running() or task.future.set_running_or_notify_cancel():
            task.future.set_exception(GroupError("this worker has left the group; the task was not run"))

    def _release(self, name: str, gone: bool = False) -> None:
        """A worker is through with a task."""
        with self._lock:
            self._running -= 1
            if gone:
                self._free.pop(name, None)
            elif name in self._free:
                self._free[name] += 1
            self._idle.notify_all()
        self._end_if_idle()

"""What one agent does on its process's devices: which they are, where tensors go, and on which streams things run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

from rpcgroup.cuda.arrival import Inlets
from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.extraction import device_tensors
from rpcgroup.cuda.finished import Finished
from rpcgroup.cuda.runtime import Runtime
from rpcgroup.cuda.sharing import Probes
from rpcgroup.cuda.staging import PinnedPool
from rpcgroup.cuda.traffic import Traffic
from rpcgroup.devices import DevicePlacement, device_list, map_for, reverse_maps
from rpcgroup.membership.record import MemberRecord

__all__ = ["Accelerator"]

P = ParamSpec("P")
T = TypeVar("T")


class Accelerator:
    """Of one agent in a process with devices. Thread-safe: what changes is replaced as a whole."""

    def __init__(
        self,
        runtime: Runtime,
        priority: int,
        later: Callable[[float, Callable[[], None]], None],
        submit: Callable[[Callable[[], None]], object],
    ) -> None:
        """`priority` is that of the streams on which functions run.

        `later(seconds, job)` has a job done by then, `submit(job)` one that may block.
        """
        self.runtime = runtime
        self.priority = priority
        self.pool = PinnedPool(runtime)
        self.inlets = Inlets(runtime)
        self.completions = Completions(runtime, later, submit)
        self.traffic = Traffic()
        self._finished = Finished(runtime)
        self.devices: tuple[torch.device, ...] = ()
        """Those that calls to and from this worker use."""
        self._me = MemberRecord(name="")
        self.ipc = runtime.ipc()
        """Shares memory with the processes of this host, see `Transfers.ipc`; None where nothing does."""
        self._probes_lock = threading.Lock()  # guards _probes
        self._probes: dict[int, Probes] = {}
        """By the incarnation of the peer."""

    def probes(
        self, incarnation: int, ask: Callable[[bytes], bytes], submit: Callable[[Callable[[], None]], object]
    ) -> Probes | None:
        """Which memory that member can open; the same for both directions of calls. None where none is shared."""
        if self.ipc is None:
            return None
        with self._probes_lock:
            known = self._probes.get(incarnation)
            if known is None:
                known = self._probes[incarnation] = Probes(self.runtime, self.ipc, ask, submit)
            return known

    def forget(self, incarnation: int) -> None:
        """It is no member any more."""
        with self._probes_lock:
            self._probes.pop(incarnation, None)

    def know(self, me: MemberRecord, others: Iterable[MemberRecord]) -> None:
        """The group has changed."""
        self._me = me
        self.devices = tuple(device_list(me, others))

    def to(self, peer: MemberRecord) -> DevicePlacement:
        """Of requests to that member, and of what goes back to it along this worker's map."""
        return DevicePlacement(peer.called, map_for(self._me, peer))

    def back_to(self, peer: MemberRecord) -> DevicePlacement:
        """Of answers to that member's requests."""
        inverse = reverse_maps(self._me, [peer]).get(peer.called, {})
        return DevicePlacement(peer.called, inverse, is_answer=True)

    def put(self, tensor: torch.Tensor, index: int) -> torch.Tensor:
        """A copy of a tensor of the host on the device of that index, done when this returns."""
        device = torch.device("cuda", index)
        dense = tensor.contiguous()
        copy = self.runtime.empty(dense.nbytes, device)
        copy.copy_(dense.view(-1).view(torch.uint8))  # not pinned, so it blocks
        self.runtime.synchronize(self.runtime.record(self.runtime.current_stream(device)))
        return copy.view(tensor.dtype).view(tensor.shape)

    def events_of(self, value: Any) -> Events | None:
        """Behind what this thread's current streams have to do for its tensors on devices; None without any."""
        tensors = device_tensors(value, self.runtime)
        return Events.record(self.runtime, tensors) if tensors else None

    @contextmanager
    def streams(self, events: Events | None) -> Iterator[None]:
        """This thread's current streams are fresh ones, behind the events of what came and what has `finished`.

        Where there is none to be had, because a device has failed, what came without tensors does without.
        """
        with ExitStack() as entered:
            try:
                behind = events or Events(self.runtime, {}, ())
                entered.enter_context(behind.after(self.devices, self.priority))
                self._finished.wait(self.devices)
            except Exception:
                if events is not None:
                    events.keep_where_failed()
                    raise
            try:
                yield
            finally:
                if events is not None:
                    events.keep_where_failed()

    def finished(self) -> None:
        """A function has ended on this thread's current streams, and its caller is told so next.

        For one whose result brings no tensors, which have events: what it has enqueued is before what runs later
        here. Raises nothing.
        """
        try:
            self._finished.add(self.devices)
        except Exception:
            pass  # a device has failed: who uses it next is told

    def brought(self, events: Events | None, decode: Callable[[], T]) -> tuple[T, Events | None]:
        """What `decode` gives of a message, and behind what it may be used: what it has `put` on devices, too.

        `events` are those of the tensors that came with the message.
        """
        with self.streams(events):
            value = decode()
            tensors = device_tensors((events.tensors if events is not None else (), value), self.runtime)
            return value, Events.record(self.runtime, tensors) if tensors else None

    def resumed(self, used: Any, run: Callable[P, None]) -> Callable[P, None]:
        """`run`, for another thread: on streams of its own, behind what the current ones of this have to do.

        `used` has the tensors that it uses.
        """
        so_far = Events.record(self.runtime, device_tensors(used, self.runtime), self.devices)

        def resume(*args: P.args, **kwargs: P.kwargs) -> None:
            with self.streams(so_far):
                run(*args, **kwargs)

        return resume

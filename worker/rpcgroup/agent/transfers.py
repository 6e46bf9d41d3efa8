"""The tensors on devices of the messages of one channel: sent behind their messages, and gathered before them.

A message with payloads is a frame of its kind with the bit `ON_DEVICE`. It is held back here until its tensors are
there; then it goes on as the frame that it would be without them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from rpcgroup.agent.call import Call
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.inbound import Arrivals
from rpcgroup.cuda.outbound import Departure, prepare
from rpcgroup.cuda.sharing import Exports
from rpcgroup.cuda.staging import Share
from rpcgroup.cuda.traffic import RECEIVED, SENT
from rpcgroup.errors import PeerUnreachableError, RpcGroupError
from rpcgroup.wire.exceptions import describe_exception, rebuild_exception
from rpcgroup.wire.frames import Body, Frame, pack_frame
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.payloads import IPC, ON_DEVICE, pack_payloads, read_payloads
from rpcgroup.wire.tensors import OnDevice

if TYPE_CHECKING:
    from rpcgroup.agent.accelerator import Accelerator
    from rpcgroup.agent.agent import Agent
    from rpcgroup.transport.channel import Channel

__all__ = ["Outgoing", "Transfers"]

PROBE_TIMEOUT: Final = 10.0
"""Seconds."""

Failed = Callable[[BaseException], None]


class Outgoing:
    """The payloads of one message that is about to be queued; `start` once it is."""

    __slots__ = ("_transfers", "departure", "table")

    def __init__(self, transfers: Transfers, departure: Departure, table: bytes) -> None:
        self.departure = departure
        self.table = table
        self._transfers = transfers

    def start(self, failed: Failed | None = None, ended: Callable[[], None] | None = None) -> None:
        """Send what the devices have, in a thread that may block.

        `failed` is told, once, where they cannot; `ended` is called when nothing more is to be sent.
        """
        self._transfers.agent.chores.submit(partial(self._run, failed, ended))

    def _run(self, failed: Failed | None, ended: Callable[[], None] | None) -> None:
        def fail(transfer_id: int, exc: Exception) -> None:
            self._transfers.put_failure(transfer_id, exc)
            if failed is not None:
                failed(exc)

        try:
            self.departure.run(self._transfers.put_chunk, fail)
        finally:
            if ended is not None:
                ended()


class Transfers:
    """One end of one channel. `channel` is set before the first message."""

    def __init__(self, agent: Agent, accelerator: Accelerator, peer: str, incarnation: int) -> None:
        """`peer` is the name of who is at the other end, with its incarnation."""
        self.agent = agent
        self._accelerator = accelerator
        self._peer = peer
        self._incarnation = incarnation
        self._ids = itertools.count(1)
        self.closed = False
        self._share = Share(accelerator.pool)
        self.channel: Channel = None  # type: ignore[assignment]  # set by who connects
        self.ipc = accelerator.runtime.ipc()
        """Opens what the peer shares; None where nothing is shared."""
        self.arrivals = Arrivals(
            accelerator.runtime,
            accelerator.pool,
            accelerator.completions,
            agent.connections.receive_pool.allocate,
            self.ipc,
            self._put_release,
            accelerator.inlets,
        )
        self._exports: Exports | None = None
        probes = accelerator.probes(incarnation, self._ask, agent.chores.submit)
        if accelerator.ipc is not None and probes is not None:
            self._exports = Exports(accelerator.ipc, probes.works)

    # -- out ----------------------------------------------------------------------------------------------

    def outgoing(self, payloads: Sequence[OnDevice]) -> Outgoing:
        """In the thread whose current streams have written them."""
        accelerator = self._accelerator
        transfer_id = next(self._ids)
        runtime, share = accelerator.runtime, self._share
        entries, departure = prepare(runtime, share, transfer_id, payloads, self._exports)
        table = pack_payloads(transfer_id, entries)
        accelerator.traffic.add(self._peer, SENT, entries)
        return Outgoing(self, departure, table)

    def put_chunk(self, transfer_id: int, index: int, place: int, data: memoryview) -> None:
        channel, kind = self.channel, MessageType.TENSOR_CHUNK
        channel.queue(pack_frame(kind, 0, transfer_id, index, place, channel.acknowledgement(), b"", [data]))
        if self.closed:
            channel.out.clear()  # the channel's own end may have been before
            raise ConnectionError("the connection is closed")
        channel.flush()

    def put_failure(self, transfer_id: int, exc: Exception) -> None:
        channel, described = self.channel, describe_exception(exc, self.agent.where)
        ack = channel.acknowledgement()
        channel.queue(pack_frame(MessageType.TENSOR_FAILED, 0, transfer_id, 0, 0, ack, described))
        channel.flush()

    def _put_release(self, transfer_id: int) -> None:
        """What the peer shares for this transfer has been read. Does not block."""
        channel = self.channel
        ack = channel.acknowledgement()
        channel.queue(pack_frame(MessageType.TENSOR_RELEASE, 0, transfer_id, 0, 0, ack))
        if not channel.try_flush():
            self.agent.chores.submit(channel.flush)

    def on_release(self, frame: Frame) -> None:
        """TENSOR_RELEASE."""
        if self._exports is not None:
            self._exports.release(frame[2])

    def _ask(self, blob: bytes) -> bytes:
        """IPC_PROBE: what the peer reads there. Blocks; raises where it cannot, or cannot be asked."""
        peer = self.agent.members.of_incarnation(self._incarnation)
        if peer is None:
            raise PeerUnreachableError(f"{self._peer} is no member")
        if peer.record.host != self.agent.record.host:
            raise RpcGroupError(f"{self._peer} is on another host, and cannot open memory of this one")
        answer: bytes = peer.link().send(MessageType.IPC_PROBE, 0, (blob,), 0, PROBE_TIMEOUT, Call()).wait()
        return answer

    # -- in -----------------------------------------------------------------------------------------------

    def hold(
        self,
        frame: Frame,
        deliver: Callable[[Frame], None],
        failed: Callable[[Frame, BaseException], None],
        borrow: Callable[[int, Events], None] = lambda id, events: None,
    ) -> None:
        """One of the two is called once, here or with a later frame: with what the frame is without its payloads.

        Before `deliver`, `borrow` is told the id of a frame with payloads that are read from the sender's memory.
        Raises `RemoteProtocolError`.
        """
        kind, flags, id, number, timeout_ms, body = frame
        assert body is not None
        transfer_id, payloads, start = read_payloads(body.data, body.start)
        rest = (kind & ~ON_DEVICE, flags, id, number, timeout_ms)

        def ready(events: Events) -> None:
            self._accelerator.traffic.add(self._peer, RECEIVED, payloads)
            if id and any(payload.path == IPC for payload in payloads):
                borrow(id, events)
            deliver((*rest, Body(body.data, start, body.buffers, events)))

        def lost(exc: BaseException) -> None:
            failed((*rest, Body(body.data, start, body.buffers)), exc)

        self.arrivals.expect(transfer_id, payloads, ready, lost)

    def on_chunk(self, frame: Frame) -> None:
        """TENSOR_CHUNK. Raises `RemoteProtocolError`."""
        _, _, transfer_id, index, place, body = frame
        buffers = body.buffers if body is not None else None
        while buffers:  # taken out: whoever looks at this frame later must not keep pinned memory
            self.arrivals.on_chunk(transfer_id, index, place, buffers.pop())
        self.channel.send_acknowledgement()  # the sender's pinned memory waits for it

    def on_failed(self, frame: Frame) -> None:
        """TENSOR_FAILED."""
        _, _, transfer_id, _, _, body = frame
        exc = rebuild_exception(body.data if body is not None else b"")
        self.arrivals.on_failed(transfer_id, exc if isinstance(exc, Exception) else RuntimeError(str(exc)))

    def close(self) -> None:
        """Before the channel is closed: what is sent from now on is not kept."""
        self.closed = True
        self.arrivals.close()
        if self._exports is not None:
            self._exports.close()
        if self.ipc is not None:
            self.agent.chores.submit(self.ipc.close)

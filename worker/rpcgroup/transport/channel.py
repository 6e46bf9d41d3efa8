"""A reliable, ordered stream of frames over successive connections.

Each side counts the frames it has received and says so in the header of every frame it sends; the other keeps
what it has written until then. When a connection breaks, a new one is attached, both sides tell their
counts, and what is missing is written again. So every frame is delivered exactly once, in order, for as long
as both processes live, and nothing above this class needs to recognise a duplicate.

Memory: a frame is kept until acknowledged. Small ones were copied when they were encoded; the buffers of
large tensors are kept by reference, as the write itself refers to them (ADR 0005).
"""

from __future__ import annotations

import _thread
from collections import deque
from typing import Any, Final, cast

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.transport.base import Stream
from rpcgroup.wire.frames import HEADER, FrameReader, OutFrame

__all__ = ["Channel"]

BATCH_FRAMES: Final = 128
"""Small frames joined into one system call."""
ACK_FRAMES: Final = 256
ACK_BYTES: Final = 8 << 20
"""After that many frames or bytes without a frame of ours to carry it, an acknowledgement goes by itself."""
MAX_PARTS: Final = 512
"""Buffers in one system call; Linux takes 1,024."""
_ACK_MASK: Final = 0xFFFFFFFF


class Channel:
    """Frames out by `queue` and `flush`, frames in by `receive` into `reader.frames`.

    Writing: anyone appends to `out`; whoever gets `write_lock` writes everything that is queued, so nobody
    waits for the lock. Reading: whoever holds `read_lock`. The two meet in `resume`, which takes both.
    """

    __slots__ = (
        "_acknowledged",
        "_unacknowledged",
        "acked_to_peer",
        "broken",
        "out",
        "read_lock",
        "reader",
        "reads",
        "stream",
        "write_lock",
    )

    def __init__(self, stream: Stream, reader: FrameReader) -> None:
        self.stream = stream
        self.reader = reader
        self.read_lock = _thread.allocate_lock()  # guards reader, _acknowledged
        self.write_lock = _thread.allocate_lock()  # guards the stream's sending side, the left end of out
        self.out: deque[OutFrame | memoryview] = deque()
        """What is to be written. A memoryview, only ever the first, is what the kernel did not take."""
        self.reads = 0
        self.broken = False
        self.acked_to_peer = 0
        """What the peer has been told of `reader.received`; a stale value costs an extra acknowledgement."""
        self._unacknowledged: deque[OutFrame] = deque()
        self._acknowledged = 0

    # -- writing ------------------------------------------------------------------------------------------

    def acknowledgement(self) -> int:
        """The count that the header of the next frame carries."""
        self.acked_to_peer = received = self.reader.received
        return received & _ACK_MASK

    def queue(self, frame: OutFrame) -> None:
        self.out.append(frame)

    def flush(self) -> None:
        """Write what is queued, unless somebody is at it, or the connection is broken."""
        out, lock = self.out, self.write_lock
        while out and not self.broken and lock.acquire(False):
            try:
                self._write_queued()
            except (OSError, IndexError):  # the latter: it was closed meanwhile, and emptied
                self.broken = True
            except BaseException:
                # KeyboardInterrupt, with a frame half written: only a new connection can go on.
                self.broken = True
                self.stream.shutdown()
                raise
            finally:
                lock.release()

    def try_flush(self) -> bool:
        """Write as many small frames as there is room for; for threads that must not wait.

        False: there is more, and somebody who may wait has to `flush`.
        """
        if self.broken or not self.write_lock.acquire(False):
            return True
        try:
            data = self._take_batch()
            if data:
                self._try_send(data)
        except (OSError, IndexError):  # as in `flush`
            self.broken = True
        finally:
            self.write_lock.release()
        # After the release: whoever queued something meanwhile has found the lock taken and relies on this.
        return not self.out or self.broken

    def send_acknowledgement(self) -> bool:
        """Tell the peer what has arrived; nothing else would carry it. Does not wait for room; False as above."""
        if self.broken or not self.write_lock.acquire(False):
            return True
        try:
            if not (self.out and isinstance(self.out[0], memoryview)):
                self._try_send(HEADER.pack(0, 0, 0, 0, 0, 0, 0, self.acknowledgement()))
        except OSError:
            self.broken = True
        finally:
            self.write_lock.release()
        return not self.out or self.broken

    def _try_send(self, data: bytes | memoryview) -> None:
        try:
            taken = self.stream.try_send(data)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            self.out.appendleft(memoryview(data)[taken:])

    def _take_batch(self) -> bytes | memoryview:
        """The rest of what is half written, else queued small frames, joined; kept until acknowledged."""
        out = self.out
        if out and isinstance(out[0], memoryview):
            return out.popleft()  # type: ignore[return-value]
        take = out.popleft
        batch: list[Any] = [take() for _ in range(min(len(out), BATCH_FRAMES))]
        try:
            data = b"".join(batch)
        except TypeError:  # a large one is among them, and goes by itself
            large = next(i for i, frame in enumerate(batch) if type(frame) is list)
            out.extendleft(reversed(batch[large:]))
            del batch[large:]
            data = b"".join(batch)
        self._unacknowledged.extend(batch)
        return data

    def _write_queued(self) -> None:
        out, send = self.out, self.stream.send
        while out:
            data = self._take_batch()
            if data:
                taken = send(data)
                if taken < len(data):
                    self._send_all(memoryview(data)[taken:])
            elif out:
                frame = cast(list[bytes | memoryview], out.popleft())
                self._unacknowledged.append(frame)
                self._send_parts([memoryview(part) for part in frame])

    def _send_parts(self, parts: list[memoryview]) -> None:
        taken = self.stream.send_many(parts[:MAX_PARTS])
        for part in parts:
            if taken >= part.nbytes:
                taken -= part.nbytes
                continue
            self._send_all(part[taken:])
            taken = 0

    def _send_all(self, data: memoryview) -> None:
        while data:
            data = data[self.stream.send(data) :]

    # -- reading ------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """One blocking read, of the rest of a large buffer if that is next. The caller holds `read_lock`.

        Raises `BlockingIOError` after `READ_TIMEOUT`, `OSError` or `EOFError` when the connection is broken,
        `RemoteProtocolError` for what no peer sends.
        """
        reader = self.reader
        receive = self.stream.receive_whole if reader.filling else self.stream.receive
        self._received(receive(reader.target()))

    def try_receive(self) -> None:
        """As `receive`, or `BlockingIOError` at once."""
        self._received(self.stream.try_receive(self.reader.target()))

    def _received(self, n: int) -> None:
        if n == 0:
            raise EOFError("the peer closed the connection")
        self.reads += 1
        reader = self.reader
        reader.advance(n)
        if reader.ack != self._acknowledged & _ACK_MASK:
            self._trim(reader.ack)
        if reader.received - self.acked_to_peer > ACK_FRAMES or reader.large_bytes > ACK_BYTES:
            reader.large_bytes = 0
            self.send_acknowledgement()

    def _trim(self, ack: int) -> None:
        """Forget the frames that the peer has; a count that goes back is an old one, replayed."""
        delta = (ack - self._acknowledged) & _ACK_MASK
        if delta > 1 << 31:
            return
        kept = self._unacknowledged
        if delta > len(kept):
            raise RemoteProtocolError(f"the peer acknowledges {delta} frames, {len(kept)} are under way")
        for _ in range(delta):
            kept.popleft()
        self._acknowledged += delta

    # -- life ---------------------------------------------------------------------------------------------

    @property
    def unacknowledged(self) -> int:
        return len(self._unacknowledged)

    def resume(self, stream: Stream, received_by_peer: int) -> None:
        """Go on over a new connection; the caller holds `read_lock`, and the old stream is closed.

        Raises `RemoteProtocolError` where the peer's count cannot be true.
        """
        with self.write_lock:
            missing = received_by_peer - self._acknowledged
            if not 0 <= missing <= len(self._unacknowledged):
                raise RemoteProtocolError(
                    f"the peer says it has {received_by_peer} frames; between {self._acknowledged} and "
                    f"{self._acknowledged + len(self._unacknowledged)} were sent"
                )
            for _ in range(missing):
                self._unacknowledged.popleft()
            self._acknowledged = received_by_peer
            if self.out and isinstance(self.out[0], memoryview):
                self.out.popleft()  # the rest of a frame that goes as a whole again
            self.out.extendleft(reversed(self._unacknowledged))
            self._unacknowledged.clear()
            self.reader.reset()
            self.stream = stream
            self.broken = False

    def close(self) -> None:
        """End for good: what is queued is dropped."""
        self.broken = True
        self.stream.close()
        self.out.clear()
        self._unacknowledged.clear()

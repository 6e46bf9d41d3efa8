from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.transport.channel import ACK_BYTES, ACK_FRAMES, BATCH_FRAMES, Channel
from rpcgroup.wire.frames import HEADER, HEADER_SIZE, JOINED_LIMIT, FrameReader, pack_frame


class FakeStream:
    """One end of a connection in memory that breaks, and takes and gives as few bytes, as a test wants."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.sent = bytearray()
        self.arriving: deque[bytes] = deque()
        self.broken = False
        self.calls = 0

    def fileno(self) -> int:
        return -1

    def send(self, data: Any) -> int:
        self._check()
        if not self.room:
            raise AssertionError("would wait for ever")
        return self._take(data)

    def try_send(self, data: Any) -> int:
        self._check()
        if not self.room:
            raise BlockingIOError
        return self._take(data)

    def send_many(self, buffers: Sequence[Any]) -> int:
        self._check()
        self.calls += 1
        total = 0
        for buffer in buffers:
            taken = self._take(buffer)
            total += taken
            if taken < len(buffer):
                break
        return total

    def _take(self, data: Any) -> int:
        taken = min(len(data), self.room)
        self.sent += bytes(data[:taken])
        self.room -= taken
        return taken

    def receive(self, into: memoryview) -> int:
        return self.try_receive(into)

    receive_whole = receive

    def try_receive(self, into: memoryview) -> int:
        self._check()
        if not self.arriving:
            raise BlockingIOError
        data = self.arriving.popleft()
        n = min(len(data), len(into))
        into[:n] = data[:n]
        if n < len(data):
            self.arriving.appendleft(data[n:])
        return n

    def wait_readable(self, timeout: float) -> bool:
        return bool(self.arriving)

    def silence(self) -> float:
        return 0.0

    def set_handshake_timeout(self, timeout: float | None) -> None: ...

    def shutdown(self) -> None:
        self.broken = True

    def close(self) -> None:
        self.broken = True

    def _check(self) -> None:
        if self.broken:
            raise ConnectionResetError("broken")


class Ends:
    """Two channels and what lies between them; `deliver` moves bytes, `reconnect` does what an agent does."""

    def __init__(self) -> None:
        self.streams = FakeStream(), FakeStream()
        self.channels = tuple(Channel(stream, FrameReader()) for stream in self.streams)
        self.received: tuple[list[bytes], list[bytes]] = ([], [])

    def queue(self, side: int, content: bytes, buffers: Sequence[bytes] = ()) -> None:
        channel = self.channels[side]
        views = [memoryview(b) for b in buffers]
        channel.queue(pack_frame(5, 0, 0, 0, 0, channel.acknowledgement(), content, views))

    def deliver(self, side: int, count: int) -> None:
        """Up to `count` bytes of what `side` has sent arrive at the other."""
        sender, receiver = self.streams[side], self.streams[1 - side]
        data = bytes(sender.sent[:count])
        del sender.sent[:count]
        if data:
            receiver.arriving.append(data)
        self.receive(1 - side)

    def receive(self, side: int) -> None:
        channel = self.channels[side]
        while self.streams[side].arriving and not self.streams[side].broken:
            channel.receive()
        while channel.reader.frames:
            body = channel.reader.frames.popleft()[5]
            buffers = [bytes(b) for b in body.buffers or ()] if body else []
            self.received[side].append((bytes(body.data[body.start :]) if body else b"") + b"".join(buffers))

    def break_connection(self) -> None:
        for stream, channel in zip(self.streams, self.channels, strict=True):
            stream.broken = True
            channel.broken = True

    def reconnect(self, room: int = 1 << 30) -> None:
        self.break_connection()
        counts = [channel.reader.received for channel in self.channels]
        self.streams = FakeStream(room), FakeStream(room)
        for side in (0, 1):
            self.channels[side].resume(self.streams[side], counts[1 - side])

    def settle(self) -> None:
        """Let everything through."""
        for _ in range(4):
            for side in (0, 1):
                self.streams[side].room = 1 << 30
                self.channels[side].flush()
                self.deliver(side, 1 << 30)


class ReliableDelivery(RuleBasedStateMachine):
    """Whatever is written, held back, half sent, lost and resumed: each frame arrives once and in order."""

    @initialize()
    def start(self) -> None:
        self.ends = Ends()
        self.sent: tuple[list[bytes], list[bytes]] = ([], [])

    @rule(
        side=st.integers(0, 1),
        size=st.sampled_from([0, 1, 100, 70_000]),
        buffers=st.lists(st.sampled_from([1, 50, 70_000]), max_size=3),
    )
    def queue(self, side: int, size: int, buffers: list[int]) -> None:
        mark = len(self.sent[side]).to_bytes(4, "big")
        content = mark + b"c" * size
        blobs = [mark + b"b" * n for n in buffers]
        self.ends.queue(side, content, blobs)
        self.sent[side].append(content + b"".join(blobs))

    @rule(side=st.integers(0, 1))
    def flush(self, side: int) -> None:
        if self.ends.streams[side].room > 1 << 29:
            self.ends.channels[side].flush()

    @rule(side=st.integers(0, 1))
    def try_flush(self, side: int) -> None:
        channel = self.ends.channels[side]
        done = channel.try_flush()
        assert done == (channel.broken or not channel.out)

    @rule(side=st.integers(0, 1), room=st.sampled_from([0, 1, 10, 1000, 1 << 30]))
    def room(self, side: int, room: int) -> None:
        self.ends.streams[side].room = room

    @rule(side=st.integers(0, 1))
    def acknowledge(self, side: int) -> None:
        self.ends.channels[side].send_acknowledgement()

    @rule(side=st.integers(0, 1), count=st.sampled_from([1, HEADER_SIZE, 30, 1000, 100_000, 1 << 30]))
    def deliver(self, side: int, count: int) -> None:
        self.ends.deliver(side, count)

    @rule(room=st.sampled_from([10, 1000, 1 << 30]))
    def reconnect(self, room: int) -> None:
        self.ends.reconnect(room)

    @rule(count=st.integers(0, 3))
    def reconnect_in_vain(self, count: int) -> None:
        for _ in range(count):
            self.ends.reconnect()

    @rule(side=st.integers(0, 1))
    def write_to_a_broken_connection(self, side: int) -> None:
        self.ends.streams[side].broken = True
        self.ends.channels[side].flush()
        self.ends.reconnect()

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        for side in (0, 1):
            received = self.ends.received[1 - side]
            assert received == self.sent[side][: len(received)]

    def teardown(self) -> None:
        self.ends.settle()
        for side in (0, 1):
            assert self.ends.received[1 - side] == self.sent[side]
            self.ends.channels[side].send_acknowledgement()
            self.ends.deliver(side, 1 << 30)
        for side in (0, 1):
            assert self.ends.channels[side].unacknowledged == 0, "nothing is retained once it has arrived"


TestReliableDelivery = ReliableDelivery.TestCase
TestReliableDelivery.settings = settings(stateful_step_count=30, max_examples=60)


def test_small_frames_are_written_together() -> None:
    stream = FakeStream()
    channel = Channel(stream, FrameReader())
    for n in range(100):
        channel.queue(pack_frame(5, 0, n, 0, 0, 0, b"x" * 100))
    channel.flush()
    assert len(stream.sent) == 100 * (HEADER_SIZE + 100)
    assert channel.unacknowledged == 100


def test_many_small_frames_are_written_in_bounded_batches() -> None:
    ends = Ends()
    for _ in range(BATCH_FRAMES + 5):
        ends.queue(0, b"x" * 10)
    assert not ends.channels[0].try_flush()
    assert len(ends.channels[0].out) == 5
    ends.settle()
    assert len(ends.received[1]) == BATCH_FRAMES + 5


def test_large_frames_among_small_ones_keep_their_places() -> None:
    ends = Ends()
    sent = [bytes([n]) * (JOINED_LIMIT * 2 if n % 3 == 2 else 10) for n in range(20)]
    for content in sent:
        ends.queue(0, content)
    ends.channels[0].flush()
    ends.settle()
    assert ends.received[1] == sent
    assert ends.channels[0].unacknowledged == len(sent)


def test_what_is_half_written_by_a_thread_that_must_not_wait_counts_as_queued() -> None:
    """Whoever looks at `out` before it waits for an answer sees that its request is not out."""
    ends = Ends()
    ends.queue(0, b"x" * 100)
    ends.streams[0].room = 50
    assert not ends.channels[0].try_flush()
    assert ends.channels[0].out
    ends.streams[0].room = 1000
    ends.channels[0].flush()
    assert not ends.channels[0].out
    ends.deliver(0, 1000)
    assert ends.received[1] == [b"x" * 100]


def test_no_acknowledgement_gets_into_the_middle_of_a_frame() -> None:
    ends = Ends()
    ends.queue(0, b"x" * 100)
    ends.streams[0].room = 50
    ends.channels[0].try_flush()
    ends.streams[0].room = 1000
    ends.channels[0].send_acknowledgement()
    ends.settle()
    assert ends.received[1] == [b"x" * 100]


def test_try_flush_leaves_large_frames_to_who_may_wait() -> None:
    ends = Ends()
    ends.queue(0, b"", [b"x" * 100_000])
    assert not ends.channels[0].try_flush()
    ends.settle()
    assert ends.received[1] == [b"x" * 100_000]


def test_a_reader_that_only_listens_acknowledges_after_a_number_of_frames() -> None:
    ends = Ends()
    for n in range(ACK_FRAMES + 1):
        ends.queue(0, bytes((n % 256,)))
    ends.channels[0].flush()
    ends.deliver(0, 1 << 30)
    assert len(ends.streams[1].sent) == HEADER_SIZE
    assert ends.channels[0].unacknowledged == ACK_FRAMES + 1
    ends.deliver(1, 1 << 30)
    assert ends.channels[0].unacknowledged == 0


def test_a_reader_that_only_listens_acknowledges_after_a_number_of_bytes() -> None:
    ends = Ends()
    ends.queue(0, b"", [bytes(ACK_BYTES + 1)])
    ends.channels[0].flush()
    ends.deliver(0, 1 << 30)
    ends.deliver(1, 1 << 30)
    assert ends.channels[0].unacknowledged == 0


def test_an_answer_carries_the_acknowledgement() -> None:
    ends = Ends()
    ends.queue(0, b"request")
    ends.channels[0].flush()
    ends.deliver(0, 1 << 30)
    ends.queue(1, b"answer")
    ends.channels[1].flush()
    ends.deliver(1, 1 << 30)
    assert ends.channels[0].unacknowledged == 0


@pytest.mark.parametrize("cut", range(0, 3 * (HEADER_SIZE + 4) + 1, 3))
def test_a_connection_that_breaks_anywhere_loses_nothing(cut: int) -> None:
    ends = Ends()
    for content in (b"1111", b"2222", b"3333"):
        ends.queue(0, content)
    ends.channels[0].flush()
    ends.deliver(0, cut)
    ends.reconnect()
    ends.settle()
    assert ends.received[1] == [b"1111", b"2222", b"3333"]


def test_frames_that_are_sent_again_are_the_same_bytes() -> None:
    """Their acknowledgements are old by then, and must not count backwards."""
    ends = Ends()
    for n in range(3):
        ends.queue(0, bytes((n,)))
        ends.channels[0].flush()
        ends.queue(1, bytes((n,)))
        ends.channels[1].flush()
        ends.deliver(1, 1 << 30)
    ends.reconnect()
    ends.settle()
    assert ends.received == ([b"\0", b"\1", b"\2"], [b"\0", b"\1", b"\2"])


def test_the_count_of_acknowledgements_wraps_around() -> None:
    ends = Ends()
    for side in (0, 1):
        ends.channels[side]._acknowledged = ends.channels[1 - side].reader.received = 2**32 - 2
        ends.channels[side].reader.ack = 2**32 - 2
    for n in range(5):
        ends.queue(0, bytes((n,)))
        ends.queue(1, bytes((n,)))
        ends.settle()
        if n == 2:
            ends.reconnect()
    assert len(ends.received[0]) == len(ends.received[1]) == 5
    ends.channels[1].send_acknowledgement()
    ends.deliver(1, 1 << 30)
    assert ends.channels[0].unacknowledged == 0


@pytest.mark.parametrize("ack", [1, 2, 1000, 2**31])
def test_an_acknowledgement_of_what_was_never_sent_is_the_peers_fault(ack: int) -> None:
    ends = Ends()
    ends.streams[0].arriving.append(HEADER.pack(0, 0, 0, 0, 0, 0, 0, ack))
    with pytest.raises(RemoteProtocolError, match=f"acknowledges {ack} frames, 0 are under way"):
        ends.receive(0)


@pytest.mark.parametrize("count", [2, 4])
def test_a_count_that_cannot_be_true_ends_the_channel(count: int) -> None:
    ends = Ends()
    for n in range(6):
        ends.queue(0, bytes((n,)))
        if n < 3:
            ends.settle()
            ends.channels[1].send_acknowledgement()
            ends.deliver(1, 1 << 30)
    ends.break_connection()
    with pytest.raises(RemoteProtocolError, match=f"says it has {count} frames; between 3 and 3 were sent"):
        ends.channels[0].resume(FakeStream(), count)
    assert not ends.channels[0].write_lock.locked()


def test_the_end_of_the_connection() -> None:
    ends = Ends()
    ends.streams[0].arriving.append(b"")
    with pytest.raises(EOFError):
        ends.channels[0].receive()


def test_writing_to_a_broken_connection_keeps_what_is_written() -> None:
    ends = Ends()
    ends.streams[0].broken = True
    ends.queue(0, b"kept")
    ends.channels[0].flush()
    assert ends.channels[0].broken
    ends.channels[0].flush()
    assert ends.channels[0].try_flush(), "nobody needs to write to what is broken"
    ends.reconnect()
    ends.settle()
    assert ends.received[1] == [b"kept"]


def test_a_closed_channel_keeps_nothing() -> None:
    ends = Ends()
    ends.queue(0, b"", [b"x" * 100_000])
    ends.channels[0].flush()
    ends.queue(0, b"more")
    ends.channels[0].close()
    assert ends.channels[0].unacknowledged == 0
    assert not ends.channels[0].out


def test_many_buffers_go_by_several_system_calls() -> None:
    ends = Ends()
    ends.queue(0, b"", [b"x" * 10] * 2000)
    ends.settle()
    assert ends.received[1] == [b"x" * 20_000]


def test_many_threads_write_every_frame_once_and_whole() -> None:
    ends = Ends()
    threads_, each = 8, 300

    def write(n: int) -> None:
        for turn in range(each):
            content = f"{n}:{turn}".encode()
            ends.queue(0, content, [content * 10_000] if turn % 50 == 0 else ())
            if turn % 3:
                ends.channels[0].flush()
            else:
                ends.channels[0].try_flush()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(threads_)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends.settle()
    for n in range(threads_):
        mine = [c for c in ends.received[1] if c.startswith(f"{n}:".encode())]
        assert len(mine) == each
        assert [len(c) > 10_000 for c in mine] == [turn % 50 == 0 for turn in range(each)]


class LateLock:
    """A write lock at whose release, while it is still held, another thread comes and finds it held."""

    def __init__(self, another_thread: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._another_thread: Callable[[], None] | None = another_thread

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        another_thread, self._another_thread = self._another_thread, None
        if another_thread is not None:
            another_thread()
        self._lock.release()


@pytest.mark.parametrize("write", [Channel.send_acknowledgement, Channel.try_flush])
def test_a_frame_that_is_queued_while_another_thread_writes_is_not_left_behind(
    write: Callable[[Channel], bool],
) -> None:
    """The other's flush found somebody at it, and went: who held the lock has to say that there is more."""
    stream = FakeStream()
    channel = Channel(stream, FrameReader())
    late = pack_frame(7, 0, 7, 0, 0, 0, b"late")

    def another_thread() -> None:
        channel.queue(late)
        channel.flush()
        assert channel.out

    channel.write_lock = LateLock(another_thread)  # type: ignore[assignment]
    assert write(channel) is False
    channel.flush()
    assert bytes(stream.sent).endswith(bytes(late))

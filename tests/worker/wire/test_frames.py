from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.frames import HEADER, HEADER_SIZE, JOINED_LIMIT, Frame, FrameReader, pack_frame

CAP = 1 << 20


def feed(reader: FrameReader, data: bytes, sizes: list[int]) -> None:
    """Give `data` to the reader in pieces of these sizes, a thousand of them, then in whole targets."""
    at = turn = 0
    while at < len(data):
        target = reader.target()
        assert len(target) > 0
        size = sizes[turn % len(sizes)] if turn < 1000 else len(target)
        n = min(size, len(target), len(data) - at)
        target[:n] = data[at : at + n]
        reader.advance(n)
        at += n
        turn += 1


def bytes_of(frames: list[tuple[Any, ...]]) -> bytes:
    stream = b""
    for kind, flags, id, function, timeout_ms, ack, body, buffers in frames:
        packed = pack_frame(
            kind, flags, id, function, timeout_ms, ack, body, [memoryview(b) for b in buffers] or None
        )
        stream += packed if isinstance(packed, bytes) else b"".join(packed)
    return stream


def content(frame: Frame) -> tuple[Any, ...]:
    *header, body = frame
    if body is None:
        return (*header, b"", [])
    buffers = [bytes(memoryview(b).cast("B")) for b in body.buffers or []]
    return (*header, bytes(body.data[body.start :]), buffers)


blobs = st.one_of(
    st.binary(max_size=200), st.builds(lambda n: b"x" * n, st.sampled_from([65_000, 65_536, 70_001, 140_000]))
)
frames = st.tuples(
    st.integers(1, 255),
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    blobs,
    st.lists(blobs, max_size=5) | st.lists(st.binary(max_size=9), max_size=20),
)
pieces = st.lists(st.integers(1, 100_000), min_size=1, max_size=8)


@settings(max_examples=60)
@given(st.lists(frames, max_size=5), pieces)
def test_any_split_of_a_stream_gives_its_frames(sent: list[tuple[Any, ...]], sizes: list[int]) -> None:
    reader = FrameReader()
    feed(reader, bytes_of(sent), sizes)

    assert [content(f) for f in reader.frames] == [(*f[:5], f[6], f[7]) for f in sent]
    assert reader.received == len(sent)
    if sent:
        assert reader.ack == sent[-1][5]


@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_a_stream_that_breaks_off_gives_only_its_whole_frames(
    sent: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    stream = bytes_of(sent)
    end = data.draw(st.integers(0, len(stream) - 1))
    reader = FrameReader()
    feed(reader, stream[:end], [65536])

    whole = sum(len(bytes_of(sent[: n + 1])) <= end for n in range(len(sent)))
    assert reader.received == len(reader.frames) == whole

    reader.reset()
    feed(reader, bytes_of(sent[whole:]), [65536])
    assert [content(f) for f in reader.frames] == [(*f[:5], f[6], f[7]) for f in sent]


@given(st.binary(max_size=4096), pieces)
def test_garbage_is_refused_or_waits_for_more(garbage: bytes, sizes: list[int]) -> None:
    reader = FrameReader(max_body=CAP, max_message=CAP)
    try:
        feed(reader, garbage, sizes)
    except RemoteProtocolError:
        pass
    assert sum(len(f.body) for f in reader.frames) <= len(garbage)


@given(st.integers(0, 2**16), st.integers(0, 255), st.integers(0, 65535), st.binary(max_size=2048))
def test_any_header_is_refused_or_waits_for_more(length: int, kind: int, count: int, rest: bytes) -> None:
    """Unlike wholly random bytes, these get past the caps and into the table of sizes."""
    reader = FrameReader(max_body=CAP, max_message=CAP)
    try:
        feed(reader, HEADER.pack(length, kind, 0, count, 1, 2, 3, 4) + rest, [77])
    except RemoteProtocolError:
        pass


def test_a_body_over_the_cap_is_refused_when_its_header_arrives() -> None:
    reader = FrameReader(max_body=1000)
    with pytest.raises(RemoteProtocolError, match="1001 bytes is over the cap of 1000"):
        feed(reader, HEADER.pack(1001, 3, 0, 0, 1, 0, 0, 0), [HEADER_SIZE])


def test_buffers_over_the_cap_are_refused_before_they_are_allocated() -> None:
    allocated: list[int] = []

    def allocate(size: int) -> bytearray:
        allocated.append(size)
        return bytearray(size)

    reader = FrameReader(allocate, max_message=1000)
    table = (600).to_bytes(8, "little") * 2
    with pytest.raises(RemoteProtocolError, match="1200 bytes are over the cap of 1000"):
        feed(reader, HEADER.pack(len(table), 3, 0, 2, 1, 0, 0, 0) + table, [100])
    assert not allocated


def test_a_body_without_room_for_its_sizes_is_refused() -> None:
    reader = FrameReader()
    with pytest.raises(RemoteProtocolError, match="says 3 buffers"):
        feed(reader, HEADER.pack(16, 3, 0, 3, 1, 0, 0, 0) + bytes(16), [100])


@pytest.mark.parametrize("error", [MemoryError, OSError])
def test_memory_that_is_not_to_be_had_is_the_peers_fault(error: type[Exception]) -> None:
    """An `OSError` would count as a broken connection, and the same frame would come again for ever."""

    def allocate(size: int) -> Any:
        raise error("no memory")

    reader = FrameReader(allocate)
    with pytest.raises(RemoteProtocolError, match="no memory for"):
        feed(reader, bytes_of([(3, 0, 1, 0, 0, 0, b"", [b"x" * 100])]), [1000])


def test_large_buffers_are_received_in_place() -> None:
    made: list[bytearray] = []

    def allocate(size: int) -> bytearray:
        made.append(bytearray(size))
        return made[-1]

    reader = FrameReader(allocate)
    feed(reader, bytes_of([(3, 0, 1, 0, 0, 0, b"body", [b"a" * 300_000, b"b" * 5])]), [65536])
    (frame,) = reader.frames
    body = frame[5]
    assert body is not None and body.buffers is not None
    assert [b is m for b, m in zip(body.buffers, made, strict=True)] == [True, True]
    assert reader.large_bytes == 300_005


def test_an_acknowledgement_is_neither_counted_nor_delivered() -> None:
    reader = FrameReader()
    feed(reader, HEADER.pack(0, 0, 0, 0, 0, 0, 0, 77), [5])
    assert reader.ack == 77
    assert reader.received == 0
    assert not reader.frames


def test_a_frame_without_buffers_is_one_bytes_object() -> None:
    assert pack_frame(3, 1, 2, 4, 5, 2**32 + 6, b"body") == HEADER.pack(4, 3, 1, 0, 2, 4, 5, 6) + b"body"


def test_a_large_body_is_not_copied_for_its_header() -> None:
    body = b"x" * (JOINED_LIMIT + 1)
    header, same = pack_frame(3, 1, 2, 4, 5, 6, body)
    assert header == HEADER.pack(len(body), 3, 1, 0, 2, 4, 5, 6)
    assert same is body

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.frames import MAX_MESSAGE
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.payloads import (
    HOST,
    IPC,
    ON_DEVICE,
    Payload,
    chunk_size,
    count_chunks,
    pack_payloads,
    read_payloads,
)

SIZES = st.integers(0, 1 << 30)
PAYLOADS = st.lists(
    st.builds(Payload, SIZES, st.integers(0, 0xFFFF), st.just(HOST), st.just(b""))
    | st.builds(Payload, SIZES, st.integers(0, 0xFFFF), st.just(IPC), st.binary(max_size=100)),
    max_size=20,
)


@given(st.integers(0, (1 << 64) - 1), PAYLOADS, st.binary(max_size=40), st.binary(max_size=40))
def test_a_table_comes_back_as_it_was(
    transfer_id: int, payloads: list[Payload], before: bytes, behind: bytes
) -> None:
    table = pack_payloads(transfer_id, payloads)
    assert len(table) % 16 == 0  # the tensors behind it stay aligned
    end = len(before) + len(table)
    assert read_payloads(before + table + behind, len(before)) == (transfer_id, payloads, end)
    assert read_payloads(bytearray(before + table), len(before)) == (transfer_id, payloads, end)


@given(PAYLOADS, st.data())
def test_a_table_that_is_cut_off_is_refused(payloads: list[Payload], data: st.DataObject) -> None:
    table = pack_payloads(1, payloads)
    with pytest.raises(RemoteProtocolError):
        read_payloads(table[: data.draw(st.integers(0, len(table) - 1))], 0)


@given(PAYLOADS, st.data())
def test_nonsense_is_refused_or_read_and_nothing_else(payloads: list[Payload], data: st.DataObject) -> None:
    table = bytearray(pack_payloads(1, payloads))
    for _ in range(data.draw(st.integers(1, 8))):
        table[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))
    try:
        _, read, end = read_payloads(table, 0)
    except RemoteProtocolError:
        return
    assert end <= len(table) and sum(payload.size for payload in read) <= MAX_MESSAGE


def test_more_bytes_than_the_cap_are_refused() -> None:
    table = pack_payloads(1, [Payload(600, 0), Payload(600, 1)])
    assert len(read_payloads(table, 0, max_size=1200)[1]) == 2
    with pytest.raises(RemoteProtocolError, match="1200 bytes are over the cap of 1199"):
        read_payloads(table, 0, max_size=1199)


def test_a_path_that_is_none_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="path 2"):
        read_payloads(pack_payloads(1, [Payload(1, 0, 2)]), 0)
    with pytest.raises(RemoteProtocolError, match="path 0, with 3 bytes"):
        read_payloads(pack_payloads(1, [Payload(1, 0, HOST, b"abc")]), 0)


def test_a_count_that_does_not_fit_is_refused_before_anything_is_made_of_it() -> None:
    with pytest.raises(RemoteProtocolError, match="4294967295 payloads"):
        read_payloads(struct.pack("<QII", 1, 0xFFFFFFFF, 0) + bytes(64), 0)


def test_the_bit_is_in_no_kind() -> None:
    assert max(MessageType) < ON_DEVICE < 256


@given(st.integers(0, 1000), st.integers(1, 64))
def test_chunks_cover_a_payload(size: int, chunk: int) -> None:
    sizes = [chunk_size(size, place, chunk) for place in range(count_chunks(size, chunk))]
    assert sum(sizes) == size
    assert all(length == chunk for length in sizes[:-1]) and all(0 < length <= chunk for length in sizes)

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.membership.etcd.auth_messages import AuthenticateRequest
from rpcgroup.membership.etcd.codec import decode, encode
from rpcgroup.membership.etcd.messages import (
    Compare,
    DeleteRequest,
    Event,
    Header,
    KeepAliveResponse,
    KeyValue,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    TimeToLiveResponse,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
    prefix_end,
    unchanged,
)

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
UINT64 = st.integers(0, (1 << 64) - 1)
HEADERS = st.builds(Header, UINT64, UINT64, INT64, UINT64)
VALUES = st.builds(KeyValue, st.binary(), INT64, INT64, INT64, st.binary(), INT64)
OPERATIONS = st.one_of(
    st.builds(RequestOp, request_range=st.builds(RangeRequest, st.binary(), st.binary(), INT64)),
    st.builds(RequestOp, request_put=st.builds(PutRequest, st.binary(), st.binary(), INT64)),
    st.builds(RequestOp, request_delete_range=st.builds(DeleteRequest, st.binary(), st.binary())),
)
MESSAGES = st.one_of(
    HEADERS,
    VALUES,
    st.builds(
        TxnRequest,
        st.lists(
            st.builds(Compare, key=st.binary(), target=st.integers(0, 4), mod_revision=INT64), max_size=2
        ),
        st.lists(OPERATIONS, max_size=3),
        st.lists(OPERATIONS, max_size=3),
    ),
    st.builds(
        WatchResponse,
        HEADERS,
        INT64,
        st.booleans(),
        st.booleans(),
        INT64,
        st.text(),
        st.booleans(),
        st.lists(st.builds(Event, st.integers(0, 1), VALUES), max_size=3),
    ),
    st.builds(AuthenticateRequest, st.text(), st.text()),
    st.builds(StatusRequest),
)


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: object) -> None:
    assert decode(type(message), encode(message)) == message


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (RangeRequest(b"a", b"b"), "0a 01 61 12 01 62"),
        (PutRequest(b"k", b"v", 300), "0a 01 6b 12 01 76 18 ac 02"),
        # A compare with revision 0 means "there is no such key": the 0 must be on the wire.
        (TxnRequest([unchanged(b"k", 0)]), "0a 07 10 02 1a 01 6b 30 00"),
        # An operation without content is one all the same.
        (TxnRequest(success=[RequestOp(request_range=RangeRequest())]), "12 02 0a 00"),
        (WatchRequest(WatchCreateRequest(b"k", fragment=True)), "0a 05 0a 01 6b 40 01"),
        (TimeToLiveResponse(ttl=-1), "18 ff ff ff ff ff ff ff ff ff 01"),
        (Header(cluster_id=(1 << 64) - 1), "08 ff ff ff ff ff ff ff ff ff 01"),
        (StatusRequest(), ""),
    ],
)
def test_bytes_as_protobuf_writes_them(message: object, data: str) -> None:
    assert encode(message).hex(" ") == data
    assert decode(type(message), bytes.fromhex(data)) == message


def test_fields_of_a_newer_etcd_are_skipped() -> None:
    known = encode(KeepAliveResponse(id=7, ttl=5))
    unknown = bytes.fromhex("78 05  81 01 0102030405060708  8d 01 01020304  92 01 03 616263")
    assert decode(KeepAliveResponse, unknown + known + unknown) == KeepAliveResponse(id=7, ttl=5)


@given(st.binary(max_size=60))
@example(bytes.fromhex("0a 05 61"))  # shorter than it says
@example(bytes.fromhex("80"))  # within a number
@example(bytes.fromhex("0b"))  # a group: proto3 has none
@example(b"\xff" * 11)  # a number of more than 64 bits
@example(bytes.fromhex("0a 01 ff 32 01 ff"))  # text that is not UTF-8
def test_garbage_is_refused_as_such(data: bytes) -> None:
    try:
        decode(WatchResponse, data)
    except RemoteProtocolError:
        pass


def test_what_is_cut_short_is_refused() -> None:
    whole = encode(
        WatchResponse(header=Header(1, 2, 3, 4), events=[Event(1, KeyValue(b"key", 1, 2, 3, b"v"))])
    )
    for cut in range(1, len(whole)):
        try:
            assert decode(WatchResponse, whole[:cut]) != decode(WatchResponse, whole)
        except RemoteProtocolError:
            pass
    with pytest.raises(RemoteProtocolError, match="WatchResponse"):
        decode(WatchResponse, whole[:-1])


@given(st.binary(min_size=1), st.binary())
def test_a_prefix_and_its_end_hold_just_what_begins_so(prefix: bytes, rest: bytes) -> None:
    end = prefix_end(prefix)
    assert prefix <= prefix + rest
    assert end == b"\0" or prefix + rest < end
    if end != b"\0":
        assert not end.startswith(prefix)

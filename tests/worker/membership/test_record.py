from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.errors import RendezvousError
from rpcgroup.membership.record import MemberRecord, MemberState, new_token

TEXT = st.text(max_size=8)
RECORDS = st.builds(
    MemberRecord,
    name=TEXT,
    role=TEXT,
    id=st.integers(0, 2**40),
    incarnation=st.integers(1, 2**60),
    address=TEXT,
    devices=st.lists(TEXT, max_size=3).map(tuple),
    device_maps=st.dictionaries(TEXT, st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
    role_device_maps=st.dictionaries(TEXT, st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
    state=st.sampled_from(MemberState),
    labels=st.dictionaries(TEXT, TEXT, max_size=2),
)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: MemberRecord) -> None:
    assert MemberRecord.from_json(record.to_json(), create_revision=7) == record


def test_incarnation_and_id_come_from_the_create_revision_where_none_is_given() -> None:
    data = MemberRecord(name="w0").to_json()
    first = MemberRecord.from_json(data, 41)
    assert (first.incarnation, first.id) == (41, 41)
    back = MemberRecord.from_json(first.to_json(), 99)
    assert (back.incarnation, back.id) == (41, 41)
    ranked = MemberRecord.from_json(MemberRecord(name="w0", id=0).to_json(), 41)
    assert (ranked.incarnation, ranked.id) == (41, 0)


def test_fields_of_a_newer_version_are_dropped() -> None:
    raw = json.loads(MemberRecord(name="w0").to_json()) | {"mood": "good"}
    assert MemberRecord.from_json(json.dumps(raw).encode(), 3).name == "w0"


def test_fields_that_an_older_version_does_not_write_are_empty() -> None:
    raw = json.loads(MemberRecord(name="w0").to_json())
    del raw["role_device_maps"]
    assert MemberRecord.from_json(json.dumps(raw).encode(), 3).role_device_maps == {}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"7", b'{"name":"x","state":"asleep"}', b"\xff"])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(RendezvousError, match="not a member record"):
        MemberRecord.from_json(data, 1)


def test_tokens_differ() -> None:
    assert new_token() != new_token()

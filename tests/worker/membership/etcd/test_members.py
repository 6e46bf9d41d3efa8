from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.members import MemberBook
from rpcgroup.membership.etcd.messages import Event, KeyValue
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import RecordGone, RecordPut

KEYS = GroupKeys("ns", "g")


def kv(name: str, mod: int, incarnation: int = 1, state: MemberState = MemberState.READY) -> KeyValue:
    record = MemberRecord(name=name, incarnation=incarnation, state=state)
    return KeyValue(KEYS.member(name), create_revision=incarnation, mod_revision=mod, value=record.to_json())


def put(name: str, mod: int, **fields: object) -> Event:
    return Event(0, kv(name, mod, **fields))  # type: ignore[arg-type]


def delete(name: str, mod: int) -> Event:
    return Event(1, KeyValue(KEYS.member(name), mod_revision=mod))


def told(events: list[RecordPut | RecordGone]) -> list[str]:
    return [f"{'+' if isinstance(e, RecordPut) else '-'}{e.record.name}" for e in events]


def test_a_list_is_told_in_the_order_of_entry() -> None:
    book = MemberBook(KEYS)
    assert told(book.replace([kv("a", 9, incarnation=5), kv("b", 7, incarnation=3)], 20)) == ["+b", "+a"]
    assert (book.view.epoch, set(book.view.members)) == (9, {"a", "b"})


def test_a_second_list_tells_the_differences() -> None:
    book = MemberBook(KEYS)
    book.replace([kv("a", 5), kv("b", 6), kv("c", 7)], 8)
    events = book.replace([kv("a", 5), kv("b", 12, state=MemberState.DRAINING), kv("d", 11)], 20)
    assert told(events) == ["-c", "+b", "+d"]
    assert book.replace([kv("a", 5), kv("b", 12, state=MemberState.DRAINING), kv("d", 11)], 30) == []
    assert book.view.epoch == 20


def test_a_deletion_tells_the_last_content() -> None:
    book = MemberBook(KEYS)
    book.apply([put("a", 5), put("a", 6, state=MemberState.LEAVING)])
    (gone,) = book.apply([delete("a", 7)])
    assert isinstance(gone, RecordGone)
    assert gone.record.state is MemberState.LEAVING
    assert book.apply([delete("a", 8)]) == []


def test_the_epoch_grows_even_where_revisions_begin_anew() -> None:
    book = MemberBook(KEYS)
    book.apply([put("a", 500)])
    book.replace([kv("b", 3)], 4)
    assert book.view.epoch == 501
    book.apply([put("a", 5)])
    assert book.view.epoch == 502


def test_a_view_does_not_change_under_its_reader() -> None:
    book = MemberBook(KEYS)
    book.apply([put("a", 5)])
    view = book.view
    book.apply([put("b", 6)])
    assert set(view.members) == {"a"}


@pytest.mark.parametrize("value", [b"", b"{", b'{"name":"other"}'])
def test_what_is_no_record_counts_as_none(value: bytes, caplog: pytest.LogCaptureFixture) -> None:
    book = MemberBook(KEYS)
    assert book.replace([KeyValue(KEYS.member("a"), 1, 1, 1, value)], 5) == []
    assert "'a'" in caplog.text


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=20),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), unique_by=lambda t: t[0], max_size=3),
)
def test_events_always_lead_from_one_view_to_the_next(
    steps: list[tuple[str, int]], final: list[tuple[str, int]]
) -> None:
    """Whoever applies the events to its own copy has the view; a record goes only if it was there."""
    book, copy, epoch = MemberBook(KEYS), dict[str, MemberRecord](), 0
    changes = [
        [put(name, mod, incarnation=what) if what else delete(name, mod)]
        for mod, (name, what) in enumerate(steps, start=2)
    ]
    batches = [book.apply(change) for change in changes]
    batches.append(book.replace([kv(name, 90, incarnation) for name, incarnation in final], 99))
    for batch in batches:
        for event in batch:
            if isinstance(event, RecordPut):
                copy[event.record.name] = event.record
            else:
                assert copy.pop(event.record.name) == event.record
    assert copy == book.view.members
    assert book.view.epoch >= epoch
    assert {(m.name, m.incarnation) for m in copy.values()} == set(final)

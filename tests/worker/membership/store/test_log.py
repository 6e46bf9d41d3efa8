from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, RecordGone, RecordPut
from rpcgroup.membership.store.log import Drain, MemberLog, drain_entry, gone_entry, record_entry


def record(name: str, token: str = "", **fields: object) -> MemberRecord:
    return replace(MemberRecord(name=name, token=token or f"token-{name}"), **fields)  # type: ignore[arg-type]


def read_all(*entries: str) -> MemberLog:
    log = MemberLog()
    for entry in entries:
        log.read(entry)
    return log


def test_the_position_of_the_first_record_is_the_incarnation() -> None:
    log = MemberLog()
    (event,) = log.read(record_entry(record("w0")))
    assert event == RecordPut(record("w0", incarnation=1, id=1))
    (event,) = log.read(record_entry(record("w1", id=7)))
    assert event == RecordPut(record("w1", incarnation=2, id=7))
    assert (log.position, log.epoch, sorted(log.members)) == (3, 2, ["w0", "w1"])
    assert log.view.members == log.members


def test_a_change_keeps_the_incarnation() -> None:
    log = read_all(record_entry(record("w0")), record_entry(record("w1")))
    ready = replace(log.members["w0"], state=MemberState.READY)
    assert log.read(record_entry(ready)) == [RecordPut(ready)]
    assert log.members["w0"].incarnation == 1


def test_a_farewell_and_an_eviction_end_a_record() -> None:
    for state in (MemberState.LEAVING, MemberState.EVICTED):
        log = read_all(record_entry(record("w0")))
        last = replace(log.members["w0"], state=state)
        assert log.read(record_entry(last)) == [RecordPut(last), RecordGone(last)]
        assert log.read(record_entry(last)) == []
        assert log.members == {}


def test_who_looks_dead_is_gone_once() -> None:
    log = read_all(record_entry(record("w0")))
    member = log.members["w0"]
    assert log.read(gone_entry(member)) == [RecordGone(member)]
    assert log.read(gone_entry(member)) == []
    assert log.read(record_entry(member)) == [RecordPut(member)]
    assert log.read(gone_entry(replace(member, incarnation=99))) == []


def test_a_taken_name_makes_a_record_void() -> None:
    log = read_all(record_entry(record("w0")))
    epoch = log.epoch
    assert log.read(record_entry(record("w0", "another"))) == []
    assert log.read(record_entry(record("w0", "another", state=MemberState.LEAVING))) == []
    assert log.members["w0"].token == "token-w0"
    assert (log.epoch, log.position) == (epoch, 4)


def test_a_later_life_in_the_same_pod_takes_the_name() -> None:
    log = read_all(record_entry(record("w0", pod_uid="u1")))
    before = log.members["w0"]
    events = log.read(record_entry(record("w0", "another", pod_uid="u1")))
    assert events == [RecordGone(before), RecordPut(log.members["w0"])]
    assert log.members["w0"].incarnation == 2


def test_a_request_to_leave_is_for_one_incarnation_and_changes_nobody() -> None:
    log = read_all(record_entry(record("w0")))
    request = DrainRequest(12.5, "scale down")
    assert log.read(drain_entry(log.members["w0"], request)) == [Drain(1, request)]
    assert log.epoch == 1


entries = st.lists(
    st.tuples(
        st.sampled_from(["come", "change", "leave", "evict", "gone", "drain"]),
        st.sampled_from("abc"),
        st.sampled_from(["1", "2"]),
    ),
    max_size=40,
)


@given(entries)
def test_what_the_events_tell_is_what_stands_in_the_log(steps: list[tuple[str, str, str]]) -> None:
    """Whoever follows the events from the start has the same members as the log; the epoch only grows."""
    log, followed = MemberLog(), {}
    for kind, name, token in steps:
        present = log.members.get(name)
        known = present if present and present.token == token else record(name, token)
        entry = {
            "come": record_entry(record(name, token)),
            "change": record_entry(replace(known, state=MemberState.READY)),
            "leave": record_entry(replace(known, state=MemberState.LEAVING)),
            "evict": record_entry(replace(known, state=MemberState.EVICTED)),
            "gone": gone_entry(known),
            "drain": drain_entry(known, DrainRequest(0.0, "")),
        }[kind]
        epoch = log.epoch
        for event in log.read(entry):
            if isinstance(event, RecordPut):
                followed[event.record.name] = event.record
            elif isinstance(event, RecordGone):
                assert followed.pop(event.record.name) == event.record
        assert log.epoch >= epoch
        assert followed == log.members

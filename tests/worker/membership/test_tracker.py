from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import RecordEvent, RecordGone, RecordPut
from rpcgroup.membership.tracker import (
    Change,
    ChangeKind,
    MemberStatus,
    MemberTracker,
    Reachable,
    TrackerEvent,
    Unreachable,
)

JOINED, DRAINING, LEFT, DIED = ChangeKind


def member(incarnation: int = 1, state: MemberState = MemberState.READY, name: str = "w0") -> MemberRecord:
    return MemberRecord(name=name, incarnation=incarnation, id=incarnation, state=state)


def put(incarnation: int = 1, state: MemberState = MemberState.READY) -> RecordPut:
    return RecordPut(member(incarnation, state))


def gone(incarnation: int = 1, state: MemberState = MemberState.READY) -> RecordGone:
    return RecordGone(member(incarnation, state))


def seen(*events: TrackerEvent) -> list[tuple[ChangeKind, int]]:
    tracker = MemberTracker()
    return [(c.kind, c.member.incarnation) for event in events for c in tracker.handle(event)]


LEAVING, EVICTED, DRAIN = MemberState.LEAVING, MemberState.EVICTED, MemberState.DRAINING
DOWN, UP = Unreachable("w0", 1), Reachable("w0", 1)


@pytest.mark.parametrize(
    ("events", "changes"),
    [
        ([put()], [(JOINED, 1)]),
        ([put(), put(), put()], [(JOINED, 1)]),
        ([put(state=MemberState.JOINING), put()], [(JOINED, 1)]),
        # A lost lease is not a death, and neither is a broken connection; both together are.
        ([put(), gone()], [(JOINED, 1)]),
        ([put(), gone(), put()], [(JOINED, 1)]),
        ([put(), DOWN], [(JOINED, 1)]),
        ([put(), DOWN, UP, gone()], [(JOINED, 1)]),
        ([put(), DOWN, gone()], [(JOINED, 1), (DIED, 1)]),
        ([put(), gone(), DOWN], [(JOINED, 1), (DIED, 1)]),
        ([put(), gone(), UP, DOWN], [(JOINED, 1), (DIED, 1)]),
        ([put(), gone(), put(), DOWN], [(JOINED, 1)]),
        ([put(), DOWN, put(), gone()], [(JOINED, 1), (DIED, 1)]),
        # A farewell, whether it can still be reached or not.
        ([put(), put(state=LEAVING), gone(state=LEAVING)], [(JOINED, 1), (LEFT, 1)]),
        ([put(), gone(state=LEAVING)], [(JOINED, 1), (LEFT, 1)]),
        ([put(), DOWN, gone(state=LEAVING)], [(JOINED, 1), (LEFT, 1)]),
        ([put(), gone(state=LEAVING), DOWN], [(JOINED, 1), (LEFT, 1)]),
        # Draining is told once.
        ([put(), put(state=DRAIN), put(state=DRAIN)], [(JOINED, 1), (DRAINING, 1)]),
        ([put(state=DRAIN)], [(JOINED, 1), (DRAINING, 1)]),
        ([put(), put(state=DRAIN), gone(state=DRAIN), put(state=DRAIN)], [(JOINED, 1), (DRAINING, 1)]),
        # Whoever ran it says that it is gone.
        ([put(), put(state=EVICTED), gone(state=EVICTED)], [(JOINED, 1), (DIED, 1)]),
        ([put(), DOWN, gone(state=EVICTED)], [(JOINED, 1), (DIED, 1)]),
        # Another incarnation of the name.
        ([put(1), put(2)], [(JOINED, 1), (DIED, 1), (JOINED, 2)]),
        ([put(1), gone(1), put(2)], [(JOINED, 1), (DIED, 1), (JOINED, 2)]),
        ([put(1), DOWN, put(2)], [(JOINED, 1), (DIED, 1), (JOINED, 2)]),
        ([put(1), put(1, LEAVING), put(2)], [(JOINED, 1), (LEFT, 1), (JOINED, 2)]),
        ([put(1), gone(1, LEAVING), put(2)], [(JOINED, 1), (LEFT, 1), (JOINED, 2)]),
        # Late news of an old incarnation, and of nobody.
        ([put(1), put(2), DOWN, gone(1)], [(JOINED, 1), (DIED, 1), (JOINED, 2)]),
        ([DOWN, UP, gone()], []),
        # Taken for dead, and back: it was cut off from here and from the rendezvous at once.
        ([put(), DOWN, gone(), put()], [(JOINED, 1), (DIED, 1), (JOINED, 1)]),
    ],
)
def test_changes(events: list[TrackerEvent], changes: list[tuple[ChangeKind, int]]) -> None:
    assert seen(*events) == changes


def test_a_missing_member_is_still_a_member_and_is_named_for_probing() -> None:
    tracker = MemberTracker()
    tracker.handle(put())
    tracker.handle(gone())
    assert tracker.status("w0") is MemberStatus.MISSING
    assert tracker.missing == [member()]
    assert tracker.members == {"w0": member()}
    tracker.handle(DOWN)
    assert (tracker.members, tracker.missing) == ({}, [])


def test_a_change_carries_the_last_record() -> None:
    tracker = MemberTracker()
    tracker.handle(put())
    last = replace(member(state=LEAVING), reason="does not fit")
    tracker.handle(RecordPut(last))
    assert tracker.handle(RecordGone(last)) == [Change(LEFT, last)]


class World:
    """Workers as they are, and the events a reader of the rendezvous gets of them, in order."""

    def __init__(self) -> None:
        self.stored: dict[str, MemberRecord] = {}
        self.alive: dict[str, MemberRecord] = {}
        self.next = 0

    def step(self, name: str, what: str) -> list[TrackerEvent]:
        return list(getattr(self, f"_{what}")(name))

    def _join(self, name: str) -> list[RecordEvent]:
        if name in self.stored or name in self.alive:
            return []
        self.next += 1
        self.alive[name] = self.stored[name] = member(self.next, name=name)
        return [RecordPut(self.stored[name])]

    def _leave(self, name: str) -> list[RecordEvent]:
        record = self.alive.pop(name, None)
        if record is None:
            return []
        self.stored.pop(name, None)
        last = replace(record, state=LEAVING)
        return [RecordPut(last), RecordGone(last)]

    def _lose_lease(self, name: str) -> list[RecordEvent]:
        return [RecordGone(self.stored.pop(name))] if name in self.stored else []

    def _return(self, name: str) -> list[RecordEvent]:
        if name not in self.alive or name in self.stored:
            return []
        self.stored[name] = self.alive[name]
        return [RecordPut(self.alive[name])]

    def _kill(self, name: str) -> list[TrackerEvent]:
        record = self.alive.pop(name, None)
        return [Unreachable(name, record.incarnation)] if record else []

    def _cut(self, name: str) -> list[TrackerEvent]:
        return [Unreachable(name, self.alive[name].incarnation)] if name in self.alive else []

    def _mend(self, name: str) -> list[TrackerEvent]:
        return [Reachable(name, self.alive[name].incarnation)] if name in self.alive else []


STEPS = st.tuples(
    st.sampled_from(["a", "b"]),
    st.sampled_from(["join", "leave", "lose_lease", "return", "kill", "cut", "mend"]),
)


@given(st.lists(STEPS, max_size=40))
def test_every_history_makes_sense(history: list[tuple[str, str]]) -> None:
    world, tracker = World(), MemberTracker()
    present: dict[str, int] = {}
    for name, what in history:
        for event in world.step(name, what):
            for change in tracker.handle(event):
                who = change.member
                if change.kind is JOINED:
                    assert who.name not in present
                    present[who.name] = who.incarnation
                else:
                    assert present[who.name] == who.incarnation
                    if change.kind in (LEFT, DIED):
                        del present[who.name]
        assert present == {name: m.incarnation for name, m in tracker.members.items()}
        assert set(world.stored) <= set(present), "nobody is out while its record stands"
        gone_for_good = {n for n in present if n not in world.stored and n not in world.alive}
        assert not gone_for_good, "nobody dead and without a record is still a member"


@given(st.lists(st.sampled_from(["lose_lease", "return", "mend"]), max_size=30))
def test_whatever_the_rendezvous_does_a_reachable_member_stays(history: list[str]) -> None:
    world, tracker = World(), MemberTracker()
    changes = [c.kind for event in world.step("a", "join") for c in tracker.handle(event)]
    changes += [c.kind for what in history for event in world.step("a", what) for c in tracker.handle(event)]
    assert changes == [JOINED]

"""What every rendezvous does: the same tests over each implementation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rpcgroup.errors import (
    JoinError,
    MemberExistsError,
    NotInitializedError,
    RendezvousUnavailableError,
    UnknownWorkerError,
)
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, RecordGone, Rendezvous
from rpcgroup.membership.tracker import ChangeKind, MemberTracker
from rpcgroup.testing.rendezvous import Place, RecordingListener

Listeners = Callable[[int], list[RecordingListener]]

TIMEOUT = 10.0


def admit_all(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
    pass


def record(name: str, **fields: object) -> MemberRecord:
    return replace(MemberRecord(name=name, address=f"tcp://{name}:1"), **fields)  # type: ignore[arg-type]


def join(seat: Rendezvous, name: str, listener: RecordingListener, **fields: object) -> MemberRecord:
    return seat.join(record(name, **fields), admit=admit_all, listener=listener, timeout=TIMEOUT)


# Joining.
def test_the_first_is_alone_with_an_incarnation_and_an_id(place: Place, listener: RecordingListener) -> None:
    mine = join(place.open(), "w0", listener)
    assert mine.incarnation > 0
    assert mine.id == mine.incarnation
    assert listener.story() == ["+w0:joining"]
    assert listener.views[0].members == {"w0": mine}


def test_a_rank_is_kept_as_id(place: Place, listener: RecordingListener) -> None:
    assert join(place.open(), "w0", listener, id=0).id == 0


def test_the_later_sees_the_earlier_and_the_earlier_learns_of_it(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    one = join(place.open(), "w0", first)
    seen: list[MemberRecord] = []
    seat = place.open()
    two = seat.join(
        record("w1"), admit=lambda mine, earlier: seen.extend(earlier), listener=second, timeout=TIMEOUT
    )
    assert seen == [one]
    assert two.incarnation > one.incarnation
    assert second.views[0].members == {"w0": one, "w1": two}
    first.wait_for_names("w0", "w1")
    assert first.views[-1] == second.views[-1]


def test_who_does_not_fit_withdraws_with_the_reason(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)

    def refuse(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
        raise JoinError("w1's device map names cuda:9, which w0 has not")

    seat = place.open()
    with pytest.raises(JoinError, match="cuda:9"):
        seat.join(record("w1"), admit=refuse, listener=second, timeout=TIMEOUT)
    first.wait(lambda me: me.gone("w1"))
    assert first.gone("w1")[0].state is MemberState.LEAVING
    assert "cuda:9" in first.gone("w1")[0].reason
    assert second.views == []
    assert set(place.open().view().members) == {"w0"}
    join(seat, "w1", second)  # and may try again


def test_a_second_of_the_same_name_is_refused_at_once(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    one = join(place.open(), "w0", first)
    with pytest.raises(MemberExistsError, match=r"'w0'.*tcp://w0:1"):
        join(place.open(), "w0", second)
    assert place.open().view().members == {"w0": one}
    assert first.story() == ["+w0:joining"]


def test_two_of_one_name_at_the_same_time_leave_one(place: Place, listeners: Listeners) -> None:
    def attempt(listener: RecordingListener) -> MemberRecord | None:
        seat = place.open()
        start.wait(TIMEOUT)
        try:
            return join(seat, "w0", listener)
        except MemberExistsError:
            return None

    start = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(attempt, listeners(2)))
    assert sum(mine is not None for mine in got) == 1


def test_a_container_restarted_in_its_pod_replaces_its_earlier_self(
    place: Place, listeners: Listeners
) -> None:
    other, first, second = listeners(3)
    join(place.open(), "w1", other)
    crashed = place.open()
    one = join(crashed, "w0", first, pod_uid="u1")
    crashed.close()
    two = join(place.open(), "w0", second, pod_uid="u1")
    assert two.incarnation > one.incarnation
    other.wait(lambda me: two in me.put("w0"))
    assert other.story("w0") == ["+w0:joining", "-w0:joining", "+w0:joining"]
    tracker = MemberTracker()
    kinds = [
        (c.kind, c.member.incarnation)
        for e in other.events
        for c in tracker.handle(e)
        if c.member.name == "w0"
    ]
    assert kinds == [
        (ChangeKind.JOINED, one.incarnation),
        (ChangeKind.DIED, one.incarnation),
        (ChangeKind.JOINED, two.incarnation),
    ]


def test_an_empty_pod_uid_proves_nothing(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    crashed = place.open()
    join(crashed, "w0", first)
    crashed.close()
    with pytest.raises(MemberExistsError):
        join(place.open(), "w0", second)


def test_the_worker_of_the_next_pod_of_a_name_waits_for_the_end_of_the_earlier_one(
    place: Place, listeners: Listeners
) -> None:
    """After a forced deletion there is a new pod of the name, and a process of the old one that lives on."""
    first, second, other = listeners(3)
    old = place.open()
    one = join(old, "w0", first, pod_name="w0", pod_uid="u1")
    join(place.open(), "w1", other)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(join, place.open(), "w0", second, pod_name="w0", pod_uid="u2")
        old.leave(TIMEOUT)
        two = joining.result(TIMEOUT)
    assert two.incarnation > one.incarnation
    other.wait(lambda me: two in me.put("w0"))


def test_but_not_for_ever(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first, pod_name="w0", pod_uid="u1")
    late = MemberRecord(name="w0", pod_name="w0", pod_uid="u2")
    with pytest.raises(MemberExistsError):
        place.open().join(late, admit=lambda mine, earlier: None, listener=second, timeout=0.3)


def test_a_dead_ones_name_is_free_once_its_lease_has_ended(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    crashed = place.open()
    one = join(crashed, "w0", first)
    crashed.close()
    place.expire("w0")
    assert join(place.open(), "w0", second).incarnation > one.incarnation


def test_twenty_concurrent_joins_agree_on_one_order(place: Place, listeners: Listeners) -> None:
    def enter(number: int) -> tuple[MemberRecord, list[MemberRecord]]:
        earlier: list[MemberRecord] = []
        start.wait(TIMEOUT)
        mine = seats[number].join(
            record(f"w{number}"),
            admit=lambda me, before: earlier.extend(before),
            listener=all_listeners[number],
            timeout=TIMEOUT,
        )
        return mine, earlier

    start = threading.Barrier(20)
    seats, all_listeners = [place.open() for _ in range(20)], listeners(20)
    with ThreadPoolExecutor(20) as pool:
        entered = list(pool.map(enter, range(20)))
    order = sorted((mine for mine, _ in entered), key=lambda m: m.incarnation)
    assert len({m.incarnation for m in order}) == 20
    for mine, earlier in entered:
        assert earlier == order[: order.index(mine)], "each saw just those before it, in the same order"
    for each in all_listeners:
        each.wait(lambda me: len(me.views[-1].members) == 20)
        assert each.views[-1] == all_listeners[0].views[-1]
        assert [event.record for event in each.events] == order


def test_a_seat_joins_once(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seat = place.open()
    join(seat, "w0", first)
    with pytest.raises(JoinError, match="joined already"):
        join(seat, "w1", second)


# Being a member.
def test_an_update_reaches_all_in_order(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seat = place.open()
    join(seat, "w0", first)
    join(place.open(), "w1", second)
    ready = seat.update(state=MemberState.READY, labels={"zone": "a"})
    seat.update(state=MemberState.DRAINING)
    second.wait(lambda me: "+w0:draining" in me.story())
    assert second.story("w0") == ["+w0:joining", "+w0:ready", "+w0:draining"]
    assert ready in second.put("w0")
    assert ready.labels == {"zone": "a"}
    first.wait(lambda me: "+w0:draining" in me.story())


def test_the_epoch_only_grows_and_is_the_same_for_all(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seat, other = place.open(), place.open()
    join(seat, "w0", first)
    join(other, "w1", second)
    seat.update(state=MemberState.READY)
    place.open().kv.put("unrelated", b"1")
    other.leave(TIMEOUT)
    first.wait(lambda me: me.gone("w1"))
    epochs = [view.epoch for view in first.views]
    assert epochs == sorted(set(epochs))
    assert {view.epoch for view in second.views} <= set(epochs)


def test_update_needs_a_member(place: Place) -> None:
    with pytest.raises(NotInitializedError, match="not joined"):
        place.open().update(state=MemberState.READY)


def test_a_lost_lease_brings_the_same_incarnation_back(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seat = place.open()
    one = join(seat, "w0", first)
    join(place.open(), "w1", second)
    ready = seat.update(state=MemberState.READY)
    place.expire("w0")
    second.wait(lambda me: len(me.gone("w0")) == 1 and "w0" in me.views[-1].members)
    assert second.story("w0") == ["+w0:joining", "+w0:ready", "-w0:ready", "+w0:ready"]
    assert second.put("w0")[-1] == ready
    assert ready.incarnation == one.incarnation
    tracker = MemberTracker()
    changes = [c for event in second.events for c in tracker.handle(event) if c.member.name == "w0"]
    assert [c.kind for c in changes] == [ChangeKind.JOINED]
    seat.update(state=MemberState.DRAINING)  # and it is kept as before
    second.wait(lambda me: "+w0:draining" in me.story())


def test_who_finds_its_name_taken_is_no_member_any_more(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    old = place.open()
    join(old, "w0", first, pod_uid="u1")
    new = join(place.open(), "w0", second, pod_uid="u1")
    first.wait(lambda me: new in me.put("w0"))
    with pytest.raises(MemberExistsError, match="w0"):
        old.update(state=MemberState.READY)
    assert place.open().view().members == {"w0": new}
    old.leave(TIMEOUT)
    assert place.open().view().members == {"w0": new}, "its farewell takes nothing that is another's"


# Leaving.
def test_leaving_is_a_farewell(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)
    seat = place.open()
    join(seat, "w1", second)
    seat.put_stats(b"{}")
    seat.leave(TIMEOUT)
    seat.leave(TIMEOUT)
    first.wait(lambda me: me.gone("w1"))
    assert first.story("w1") == ["+w1:joining", "+w1:leaving", "-w1:leaving"]
    assert place.open().stats() == {}


def test_a_seat_that_left_may_join_again_as_a_new_incarnation(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seat = place.open()
    one = join(seat, "w0", first)
    seat.leave(TIMEOUT)
    assert join(seat, "w0", second).incarnation > one.incarnation


def test_closing_leaves_the_record_to_its_lease(place: Place, listener: RecordingListener) -> None:
    seat = place.open()
    mine = join(seat, "w0", listener)
    seat.close()
    seat.close()
    assert place.open().view().members == {"w0": mine}


# Asking others to leave.
def test_a_drain_request_reaches_its_member(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seat = place.open()
    join(seat, "w0", first)
    join(place.open(), "w1", second)
    request = DrainRequest(deadline=time.time() + 30, reason="scale down")
    place.open().request_drain("w0", request)
    first.wait(lambda me: me.drains)
    sooner = replace(request, deadline=request.deadline - 20)
    place.open().request_drain("w0", sooner)
    first.wait(lambda me: len(me.drains) == 2)
    assert first.drains == [request, sooner]
    assert second.drains == []


def test_nobody_is_asked_to_leave_who_is_not_there(place: Place, listener: RecordingListener) -> None:
    join(place.open(), "w0", listener)
    with pytest.raises(UnknownWorkerError, match=r"w9.*w0"):
        place.open().request_drain("w9", DrainRequest(0.0, ""))


def test_what_was_asked_of_an_earlier_worker_is_no_concern_of_the_next(
    place: Place, listeners: Listeners
) -> None:
    first, second = listeners(2)
    crashed = place.open()
    join(crashed, "w0", first)
    place.open().request_drain("w0", DrainRequest(1.0, "old"))
    first.wait(lambda me: me.drains)
    crashed.close()
    place.expire("w0")
    join(place.open(), "w0", second)
    place.open().request_drain("w0", DrainRequest(2.0, "new"))
    second.wait(lambda me: me.drains)
    assert [request.reason for request in second.drains] == ["new"]


def test_an_evicted_member_is_gone_at_once_and_counts_as_dead(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)
    crashed = place.open()
    join(crashed, "w1", second)
    crashed.put_stats(b"{}")
    crashed.close()
    place.open().evict("w1")
    place.open().evict("w1")
    first.wait(lambda me: me.gone("w1"))
    tracker = MemberTracker()
    changes = [c for event in first.events for c in tracker.handle(event) if c.member.name == "w1"]
    assert [c.kind for c in changes] == [ChangeKind.JOINED, ChangeKind.DIED]
    assert first.story("w1")[-1] == "-w1:evicted"
    assert place.open().stats() == {}


def test_who_is_evicted_by_mistake_comes_back(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)
    mine = join(place.open(), "w1", second)
    place.open().evict("w1")
    first.wait(lambda me: me.gone("w1") and "w1" in me.views[-1].members)
    assert first.put("w1")[-1] == mine


def test_who_is_evicted_while_it_leaves_does_not_come_back(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)
    leaver = place.open()
    join(leaver, "w1", second)
    leaver.update(state=MemberState.DRAINING)
    place.open().evict("w1")
    second.wait(lambda me: me.gone("w1"))
    leaver.leave(TIMEOUT)
    first.wait(lambda me: me.gone("w1"))
    assert first.story("w1")[-1] == "-w1:evicted"
    assert set(place.open().view().members) == {"w0"}


def test_who_looks_dead_and_is_loses_its_record_without_a_word(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)
    crashed = place.open()
    mine = join(crashed, "w1", second)
    crashed.close()
    place.open().suspect(mine)
    place.open().suspect(mine)
    first.wait(lambda me: me.gone("w1"))
    assert first.story("w1") == ["+w1:joining", "-w1:joining"]
    assert set(place.open().view().members) == {"w0"}


def test_who_looks_dead_and_lives_puts_its_record_back(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)
    mine = join(place.open(), "w1", second)
    place.open().suspect(mine)
    first.wait(lambda me: me.gone("w1") and "w1" in me.views[-1].members)
    assert first.put("w1")[-1] == mine


def test_a_suspicion_of_an_earlier_incarnation_is_late(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seat = place.open()
    before = join(seat, "w0", first)
    seat.leave(TIMEOUT)
    now = join(place.open(), "w0", second)
    place.open().suspect(before)
    assert place.open().view().members == {"w0": now}
    assert second.story() == ["+w0:joining"]


# Looking.
def test_view_without_joining(place: Place, listener: RecordingListener) -> None:
    looker = place.open()
    assert looker.view().members == {}
    seat = place.open()
    mine = join(seat, "w0", listener)
    assert looker.view().members == {"w0": mine}
    assert looker.view() == seat.view()


def test_stats_of_all_and_gone_with_the_lease(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    seats = [place.open(), place.open()]
    join(seats[0], "w0", first)
    join(seats[1], "w1", second)
    seats[0].put_stats(b'{"calls":1}')
    seats[1].put_stats(b'{"calls":2}')
    assert place.open().stats() == {"w0": b'{"calls":1}', "w1": b'{"calls":2}'}
    seats[1].close()
    place.expire("w1")
    assert place.open().stats() == {"w0": b'{"calls":1}'}


def test_stats_of_a_seat_that_has_not_joined_go_nowhere(place: Place) -> None:
    seat = place.open()
    seat.put_stats(b"{}")
    assert seat.stats() == {}


# Small shared values.
def test_values(place: Place) -> None:
    one, two = place.open().kv, place.open().kv
    assert one.get("a/b") is None
    one.put("a/b", b"1")
    assert two.get("a/b") == b"1"
    two.put("a/b", b"")
    assert one.get("a/b") == b""
    assert one.delete("a/b") is True
    assert one.delete("a/b") is False
    assert two.get("a/b") is None


def test_a_value_watch_tells_what_is_there_then_every_change(place: Place) -> None:
    told: list[tuple[str, bytes | None]] = []
    news = threading.Condition()

    def tell(key: str, value: bytes | None) -> None:
        with news:
            told.append((key, value))
            news.notify_all()

    def wait_for(count: int) -> None:
        with news:
            assert news.wait_for(lambda: len(told) >= count, TIMEOUT), told

    kv, other = place.open().kv, place.open().kv
    kv.put("a/2", b"2")
    kv.put("a/1", b"1")
    kv.put("b", b"no")
    stop = kv.watch("a/", tell)
    wait_for(2)
    other.put("a/1", b"one")
    other.put("b", b"still no")
    other.delete("a/2")
    wait_for(4)
    assert told == [("a/1", b"1"), ("a/2", b"2"), ("a/1", b"one"), ("a/2", None)]
    stop()
    stop()
    other.put("a/1", b"after the end")
    assert len(told) == 4


def test_groups_do_not_see_each_other(place: Place, listener: RecordingListener) -> None:
    join(place.open(), "w0", listener)
    assert place.another().open().view().members == {}


# When the rendezvous is away.
def test_an_outage_shows_as_such_and_nothing_is_lost(breakable_place: Place, listeners: Listeners) -> None:
    place = breakable_place
    first, second = listeners(2)
    seat, other = place.open(), place.open()
    mine = join(seat, "w0", first)
    join(other, "w1", second)
    looker = place.open()
    with place.outage():
        with pytest.raises(RendezvousUnavailableError):
            looker.view()
        with pytest.raises(RendezvousUnavailableError):
            seat.update(state=MemberState.READY)
        with pytest.raises(RendezvousUnavailableError):
            place.open().join(record("w2"), admit=admit_all, listener=listeners(1)[0], timeout=0.5)
        seat.put_stats(b"lost")
        assert seat.view().members["w0"] == mine
    second.wait(lambda me: "+w0:ready" in me.story())  # the change was pending
    tracker = MemberTracker()
    changes = [(c.kind, c.member.name) for event in second.events for c in tracker.handle(event)]
    assert changes == [(ChangeKind.JOINED, "w0"), (ChangeKind.JOINED, "w1")]


def test_a_join_outlasts_an_outage(breakable_place: Place, listener: RecordingListener) -> None:
    seat = breakable_place.open()
    with ThreadPoolExecutor(1) as pool:
        with breakable_place.outage():
            joining = pool.submit(join, seat, "w0", listener)
        assert joining.result(TIMEOUT).name == "w0"


def test_leaving_in_an_outage_raises_nothing(breakable_place: Place, listener: RecordingListener) -> None:
    seat = breakable_place.open()
    join(seat, "w0", listener)
    with breakable_place.outage():
        seat.leave(0.5)


def test_a_removed_record_shows_its_last_content(place: Place, listeners: Listeners) -> None:
    first, second = listeners(2)
    join(place.open(), "w0", first)
    crashed = place.open()
    join(crashed, "w1", second)
    last = crashed.update(state=MemberState.READY)
    crashed.close()
    place.expire("w1")
    first.wait(lambda me: me.gone("w1"))
    assert first.events[-1] == RecordGone(last)

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.membership.etcd.cursor import Verdict, WatchCursor
from rpcgroup.membership.etcd.messages import Event, Header, KeyValue, WatchResponse


def response(revision: int, *mods: int, term: int = 3, **fields: object) -> WatchResponse:
    events = [Event(0, KeyValue(b"k", mod_revision=mod)) for mod in mods]
    return WatchResponse(Header(revision=revision, raft_term=term), events=events, **fields)  # type: ignore[arg-type]


def mods(events: list[Event]) -> list[int]:
    return [event.kv.mod_revision for event in events]


def test_it_goes_on_after_the_last_event_and_not_after_the_header() -> None:
    cursor = WatchCursor(5)
    verdict, events = cursor.feed(response(1501, 5, 6, 7))
    assert (verdict, mods(events), cursor.next_revision) == (Verdict.FOLLOW, [5, 6, 7], 8)


def test_only_progress_without_events_moves_it_by_the_header() -> None:
    cursor = WatchCursor(5)
    cursor.feed(response(90, created=True))
    assert cursor.next_revision == 5
    cursor.feed(response(90))
    assert cursor.next_revision == 91
    cursor.feed(response(80))
    assert cursor.next_revision == 91


def test_fragments_are_told_together_when_the_last_is_there() -> None:
    cursor = WatchCursor(5)
    assert cursor.feed(response(9, 5, 6, fragment=True)) == (Verdict.FOLLOW, [])
    assert cursor.next_revision == 5
    _, events = cursor.feed(response(9, 6, 7))
    assert (mods(events), cursor.next_revision) == ([5, 6, 6, 7], 8)


def test_a_stream_that_breaks_between_fragments_tells_nothing_twice() -> None:
    cursor = WatchCursor(5)
    cursor.feed(response(9, 5, 6, fragment=True))
    cursor.reopened()
    _, events = cursor.feed(response(9, 5, 6, 7))
    assert mods(events) == [5, 6, 7]


def test_what_was_told_is_dropped() -> None:
    cursor = WatchCursor(5)
    cursor.feed(response(9, 5, 6))
    _, events = cursor.feed(response(9, 5, 6, 7))
    assert mods(events) == [7]


def test_a_compaction_means_reading_anew() -> None:
    assert WatchCursor(5).feed(response(900, canceled=True, compact_revision=800)) == (Verdict.RELIST, [])


def test_a_cancel_says_why() -> None:
    cursor = WatchCursor(5)
    refusal = response(9, created=True, canceled=True, cancel_reason="invalid auth token")
    assert cursor.feed(refusal) == (Verdict.REOPEN, [])
    assert cursor.cancel_reason == "invalid auth token"


def test_a_younger_store_means_reading_anew() -> None:
    assert WatchCursor(50).feed(response(48, created=True))[0] is Verdict.RELIST
    assert WatchCursor(50, term=4).feed(response(90, term=3, created=True))[0] is Verdict.RELIST
    assert WatchCursor(50, term=3).feed(response(49, term=3, created=True))[0] is Verdict.FOLLOW
    assert WatchCursor(50, term=3).feed(response(60, term=7, created=True))[0] is Verdict.FOLLOW


@st.composite
def broken_streams(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """A history of (revision, events in it), and for each stream how many responses come before it breaks."""
    history, revision = [], 1
    for _ in range(draw(st.integers(0, 25))):
        revision += draw(st.integers(1, 3))
        history.append((revision, draw(st.integers(1, 3))))
    plans = draw(st.lists(st.lists(st.integers(1, 4), max_size=6), max_size=5))
    return history, plans


def serve(history: list[tuple[int, int]], start: int, batches: list[int]) -> Iterator[WatchResponse]:
    """As etcd does: whole revisions in a response, cut into fragments; the header far ahead."""
    head = history[-1][0] + 1000 if history else 1000
    yield response(head, created=True)
    rest = [(revision, count) for revision, count in history if revision >= start]
    for size in batches:
        batch, rest = rest[:size], rest[size:]
        events = [revision for revision, count in batch for _ in range(count)]
        while len(events) > 2:
            yield response(head, *events[:2], fragment=True)
            events = events[2:]
        if events:
            yield response(head, *events)


@given(broken_streams(), st.integers(0, 10))
def test_every_event_once_in_order_however_the_streams_break(
    case: tuple[list[tuple[int, int]], list[list[int]]], cut: int
) -> None:
    history, plans = case
    cursor, told = WatchCursor(1), []
    for batches in [*plans, [len(history)]]:
        cursor.reopened()
        responses = list(serve(history, cursor.next_revision, batches))
        if batches != [len(history)]:
            responses = responses[: max(len(responses) - cut, 0)]
        for each in responses:
            verdict, events = cursor.feed(each)
            assert verdict is Verdict.FOLLOW
            told += mods(events)
    assert told == [revision for revision, count in history for _ in range(count)]

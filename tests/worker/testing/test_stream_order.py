from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcgroup.testing.stream_order import EVERYTHING, Clock, Lane, Memory, Span, StreamOrder, Use
from tests.worker.testing.reachability import Step, is_ordered


class Program:
    """Two lanes and a memory that the first one allocated and wrote."""

    def __init__(self) -> None:
        self.order = StreamOrder()
        self.a, self.b = Lane("a"), Lane("b")
        self.memory = self.order.allocate(self.a, "m", "empty")
        self.write(self.a)

    def read(self, lane: Lane, span: Span = EVERYTHING) -> None:
        self.order.enqueue(lane, "a read", [Use(self.memory, span, False)])

    def write(self, lane: Lane, span: Span = EVERYTHING) -> None:
        self.order.enqueue(lane, "a write", [Use(self.memory, span, True)])

    def after(self, lane: Lane, other: Lane) -> None:
        self.order.wait(lane, self.order.snapshot(other))

    @property
    def violations(self) -> list[str]:
        return self.order.violations


def test_the_work_of_one_lane_is_in_order() -> None:
    program = Program()
    program.read(program.a)
    program.write(program.a)
    program.order.free(program.memory, "del")
    assert program.violations == []


@pytest.mark.parametrize("use", [Program.read, Program.write])
def test_what_is_not_behind_the_last_write(use: Callable[[Program, Lane], None]) -> None:
    program = Program()
    use(program, program.b)
    assert any("is not behind the write by a write on a" in line for line in program.violations)


def test_what_is_not_behind_the_allocation_is_not_either_without_a_write() -> None:
    order = StreamOrder()
    memory = order.allocate(Lane("a"), "m", "empty")
    order.enqueue(Lane("b"), "a write", [Use(memory, EVERYTHING, True)])
    assert order.violations == [
        "m: the write by a write on b is not behind the write by the allocation in empty on a"
    ]


def test_a_wait_orders_and_only_what_was_recorded() -> None:
    program = Program()
    program.after(program.b, program.a)
    program.read(program.b)
    assert program.violations == []
    program.write(program.a)
    program.read(program.b)
    assert program.violations == [
        "m: the write by a write on a is not behind the read by a read on b",
        "m: the read by a read on b is not behind the write by a write on a",
    ]


def test_a_wait_goes_on_to_those_that_wait_for_the_waiting_one() -> None:
    program = Program()
    c = Lane("c")
    program.after(program.b, program.a)
    program.after(c, program.b)
    program.write(c)
    assert program.violations == []


def test_a_write_over_a_read() -> None:
    program = Program()
    program.after(program.b, program.a)
    program.read(program.b)
    program.write(program.a)
    assert program.violations == ["m: the write by a write on a is not behind the read by a read on b"]


def test_a_write_over_the_reads_of_two() -> None:
    program = Program()
    c = Lane("c")
    for lane in (program.b, c):
        program.after(lane, program.a)
        program.read(lane)
    program.after(program.a, c)
    program.write(program.a)
    assert program.violations == ["m: the write by a write on a is not behind the read by a read on b"]


def test_two_reads_need_no_order() -> None:
    program = Program()
    program.after(program.b, program.a)
    program.read(program.b)
    program.read(program.a)
    assert program.violations == []


def test_a_read_stands_for_the_reads_before_it_and_for_no_write() -> None:
    program = Program()
    c = Lane("c")
    program.after(program.b, program.a)
    program.read(program.b)
    program.read(c)
    assert program.violations == ["m: the read by a read on c is not behind the write by a write on a"]


def test_bytes_that_do_not_meet_need_no_order() -> None:
    program = Program()
    program.after(program.b, program.a)
    program.write(program.b, Span(0, 8))
    program.write(program.a, Span(8, 16))
    assert program.violations == []
    program.write(program.a, Span(7, 9))
    assert len(program.violations) == 1


def test_no_bytes_are_no_use() -> None:
    program = Program()
    program.write(program.b, Span(0, 0))
    program.order.free(program.memory, "del")
    assert program.violations == []


def test_what_the_host_has_synchronized_with_is_before_all_that_is_enqueued_later() -> None:
    program = Program()
    event = program.order.snapshot(program.a)
    program.order.synchronize(event)
    program.read(program.b)
    program.order.free(program.memory, "del")
    assert len(program.violations) == 1  # the read: nobody has waited for it


def test_memory_is_freed_while_another_lane_uses_it() -> None:
    program = Program()
    program.after(program.b, program.a)
    program.read(program.b)
    program.order.free(program.memory, "del")
    assert program.violations == [
        "m is freed in del for a, which does not wait for the read by a read on b, and it was not retained there"
    ]


@pytest.mark.parametrize("how", ["retained", "ordered back", "synchronized"])
def test_memory_is_freed_behind_another_lanes_use(how: str) -> None:
    program = Program()
    program.after(program.b, program.a)
    program.read(program.b)
    if how == "retained":
        program.order.retain(program.memory, program.b)
    elif how == "ordered back":
        program.after(program.a, program.b)
    else:
        program.order.synchronize(program.order.snapshot(program.b))
    program.order.free(program.memory, "del")
    assert program.violations == []


def test_what_a_retained_lane_is_behind_is_over_before_the_memory_is_used_again() -> None:
    program = Program()
    c = Lane("c")
    program.after(program.b, program.a)
    program.read(program.b)
    program.after(c, program.b)
    program.order.retain(program.memory, c)
    program.order.free(program.memory, "del")
    assert program.violations == []


def test_it_is_retained_for_that_lane_only() -> None:
    program = Program()
    c = Lane("c")
    program.after(program.b, program.a)
    program.after(c, program.a)
    program.read(program.b)
    program.read(c)
    program.order.retain(program.memory, program.b)
    program.order.free(program.memory, "del")
    assert [line for line in program.violations if "on c" in line] == program.violations != []


@pytest.mark.parametrize("writes", [False, True])
def test_the_host_uses_memory_that_is_still_copied(writes: bool) -> None:
    order, lane, pinned = StreamOrder(), Lane("a"), Memory("pinned")
    order.access_by_host(pinned, EVERYTHING, "fill")
    order.enqueue(lane, "a copy", [Use(pinned, Span(0, 8), writes)])
    event = order.snapshot(lane)
    order.access_by_host(pinned, Span(8, 16), "fill")
    assert order.violations == []
    order.access_by_host(pinned, Span(0, 1), "fill")
    assert len(order.violations) == 1
    order.synchronize(event)
    order.access_by_host(pinned, EVERYTHING, "fill")
    assert len(order.violations) == 1


# -- beside brute force -----------------------------------------------------------------------------------

LANES = st.integers(0, 3)
SPANS = st.tuples(st.integers(0, 3), st.integers(1, 3)).map(lambda s: (s[0], s[0] + s[1]))


def run(steps: Sequence[Step]) -> list[str]:
    order = StreamOrder()
    lanes = [Lane(str(number)) for number in range(4)]
    memories: dict[int, Memory] = {}
    events: dict[int, Clock] = {}
    for step in steps:
        match step:
            case ("allocate", memory, lane):
                memories[memory] = order.allocate(lanes[lane], f"m{memory}", "empty")
            case ("use", lane, uses):
                order.enqueue(
                    lanes[lane], "op", [Use(memories[m], Span(start, end), w) for m, start, end, w in uses]
                )
            case ("record", event, lane):
                events[event] = order.snapshot(lanes[lane])
            case ("wait", event, lane):
                order.wait(lanes[lane], events[event])
            case ("synchronize", event):
                order.synchronize(events[event])
            case ("host", memory, start, end):
                order.access_by_host(memories[memory], Span(start, end), "host")
            case ("retain", memory, lane):
                order.retain(memories[memory], lanes[lane])
            case ("free", memory):
                order.free(memories.pop(memory), "del")
    return order.violations


@st.composite
def any_programs(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    alive: list[int] = []
    events = 0
    for number in range(draw(st.integers(2, 24))):
        kinds = ["allocate", "record"]
        kinds += ["use", "use", "use", "host", "retain", "free"] if alive else []
        kinds += ["wait", "wait", "synchronize"] if events else []
        kind = draw(st.sampled_from(kinds))
        lane = draw(LANES)
        if kind == "allocate":
            alive.append(number)
            steps.append((kind, number, lane))
        elif kind == "record":
            steps.append((kind, events, lane))
            events += 1
        elif kind == "wait":
            steps.append((kind, draw(st.integers(0, events - 1)), lane))
        elif kind == "synchronize":
            steps.append((kind, draw(st.integers(0, events - 1))))
        elif kind == "free":
            steps.append((kind, alive.pop(draw(st.integers(0, len(alive) - 1)))))
        else:
            chosen = draw(st.lists(st.sampled_from(alive), min_size=1, max_size=2, unique=True))
            if kind == "use":
                steps.append((kind, lane, [(m, *draw(SPANS), draw(st.booleans())) for m in chosen]))
            elif kind == "host":
                steps.append((kind, chosen[0], *draw(SPANS)))
            else:
                steps.append((kind, chosen[0], lane))
    return steps


@settings(max_examples=300, deadline=None)
@given(any_programs())
def test_any_program_is_judged_as_by_brute_force(steps: list[Step]) -> None:
    assert (run(steps) == []) == is_ordered(steps)


@st.composite
def right_programs(draw: st.DrawFn) -> list[Step]:
    """Each use is behind all uses before it that are another lane's, and is retained."""
    steps: list[Step] = []
    events: dict[int, list[int]] = {}  # of the uses of each memory that is alive
    recorded = 0
    for number in range(draw(st.integers(2, 16))):
        lane = draw(LANES)
        kind = draw(st.sampled_from(["use", "use", "use", "allocate", "free"])) if events else "allocate"
        memory = draw(st.sampled_from(sorted(events))) if events else 0
        if kind == "free":
            del events[memory]
            steps.append((kind, memory))
            continue
        if kind == "allocate":
            events[number] = []
            memory = number
            steps.append((kind, memory, lane))
        else:
            steps.extend(("wait", event, lane) for event in events[memory])
            steps.append(("use", lane, [(memory, *draw(SPANS), draw(st.booleans()))]))
            steps.append(("retain", memory, lane))
        steps.append(("record", recorded, lane))
        events[memory].append(recorded)
        recorded += 1
    return steps


@settings(max_examples=200, deadline=None)
@given(right_programs(), st.data())
def test_a_right_program_is_clean_and_with_a_wait_or_retain_left_out_as_brute_force_says(
    steps: list[Step], data: st.DataObject
) -> None:
    assert run(steps) == []
    seams = [number for number, step in enumerate(steps) if step[0] in ("wait", "retain")]
    if seams:
        left_out = data.draw(st.sampled_from(seams))
        worse = steps[:left_out] + steps[left_out + 1 :]
        assert (run(worse) == []) == is_ordered(worse)

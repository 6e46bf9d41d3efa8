"""The order of a recorded program by brute force: a graph of all its steps, and who can be reached from where.

A step is a tuple, its first word says what it is; lanes, memories and events are numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Step = tuple[Any, ...]

HOST = -1


def is_ordered(steps: Sequence[Step]) -> bool:
    """Steps: ("allocate", memory, lane), ("use", lane, [(memory, start, end, writes)]), ("record", event, lane),
    ("wait", event, lane), ("synchronize", event), ("host", memory, start, end), ("retain", memory, lane) and
    ("free", memory); event and memory numbers are used once.
    """
    before: list[set[int]] = []  # of each step, all steps that are done before it
    last: dict[int, int] = {}  # of each lane
    events: dict[int, int] = {}
    home: dict[int, int] = {}
    uses: dict[int, list[tuple[int, int, int, int, bool]]] = {}  # by memory: step, lane, start, end, writes
    retained: set[tuple[int, int]] = set()

    def behind(*others: int | None) -> set[int]:
        return {step for other in others if other is not None for step in (other, *before[other])}

    for number, (kind, *rest) in enumerate(steps):
        lane: int | None = None
        after: set[int] = set()
        if kind in ("allocate", "record"):
            name, lane = rest
            after = behind(last.get(lane), last.get(HOST))
            if kind == "record":
                events[name] = number
            else:
                home[name] = lane
                uses[name] = [(number, lane, 0, 1 << 62, True)]
        elif kind == "use":
            lane, spans = rest
            after = behind(last.get(lane), last.get(HOST))
            for memory, start, end, writes in spans:
                for step, _, other_start, other_end, other_writes in uses.setdefault(memory, []):
                    meets = start < other_end and other_start < end
                    if meets and (writes or other_writes) and step not in after and step != number:
                        return False
                uses[memory].append((number, lane, start, end, writes))
        elif kind == "wait":
            event, lane = rest
            after = behind(last.get(lane), events[event])
        elif kind == "synchronize":
            lane = HOST
            after = behind(last.get(HOST), events[rest[0]])
        elif kind == "host":
            memory, start, end = rest
            known = behind(last.get(HOST))
            for step, _, other_start, other_end, _ in uses.get(memory, []):
                if start < other_end and other_start < end and step not in known:
                    return False
        elif kind == "retain":
            retained.add((rest[0], rest[1]))
        elif kind == "free":
            memory = rest[0]
            users = (lane for of, lane in retained if of == memory)
            known = behind(*map(last.get, (home[memory], HOST, *users)))
            if any(step not in known for step, *_ in uses[memory]):
                return False
        before.append(after)
        if lane is not None:
            last[lane] = number
    return True

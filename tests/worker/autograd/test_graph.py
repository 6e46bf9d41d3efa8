from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.autograd.graph import Edge, LocalGraph

Table = dict[str, list[Edge]]


def graph(table: Table, *entries: str) -> LocalGraph:
    """`entries`: the nodes that the roots, and each send function, enter by."""
    return LocalGraph([[(node, 0) for node in nodes] for nodes in entries], lambda node: table.get(node, []))


def edges(*nodes: str) -> list[Edge]:
    return [(node, 0) for node in nodes]


def test_without_sends_everything_is_one_stage() -> None:
    made = graph({"a": edges("b", "c"), "b": edges("x"), "c": edges("x", "y")}, "a")
    assert made.arrive(0)
    stage = made.take()
    assert not stage.early
    assert stage.rest[0] == "a" and set(stage.rest) == {"a", "b", "c"}
    assert set(stage.terminals) == {"x", "y"}
    assert made.finished


def test_a_node_waits_for_all_sends_that_reach_it() -> None:
    made = graph({"a": edges("r"), "s": edges("x"), "t": edges("x", "y")}, "a", "s", "t")
    made.arrive(0)
    assert made.take().terminals == ["r"]
    made.arrive(1)
    stage = made.take()
    assert stage.early == ["s"] and not stage.terminals  # x is also reached by t
    assert made.missing == [2]
    made.arrive(2)
    stage = made.take()
    assert stage.rest == ["t"] and set(stage.terminals) == {"x", "y"}
    assert made.finished


def test_what_leads_to_a_blocked_node_is_early_with_all_that_leads_to_it() -> None:
    table = {"a": edges("b", "c"), "b": edges("m"), "c": edges("r"), "m": edges("x"), "s": edges("m")}
    made = graph(table, "a", "s")
    made.arrive(0)
    stage = made.take()
    assert stage.early == ["a", "b"]
    assert stage.rest == ["c"] and stage.terminals == ["r"]


def test_edges_that_lead_nowhere_are_passed_over() -> None:
    made = graph({"a": [(None, 0), ("x", 0), (None, 0)]}, "a")
    made.arrive(0)
    assert made.take().terminals == ["x"]


def test_a_send_is_heard_of_once() -> None:
    made = graph({"s": edges("x")}, "", "s")
    assert made.arrive(1)
    assert not made.arrive(1)


def test_a_deep_graph() -> None:
    count = 100_000
    made = graph({str(n): edges(str(n + 1)) for n in range(count)}, ["0"])  # type: ignore[arg-type]
    made.arrive(0)
    assert len(made.take().rest) == count


@given(st.randoms(use_true_random=False), st.integers(1, 12), st.integers(1, 5))
def test_each_node_is_taken_once_when_all_before_it_are_there(random: Any, count: int, entries: int) -> None:
    nodes = [str(n) for n in range(count)]
    table: Table = {
        node: edges(*random.sample(nodes[n + 1 :], random.randint(0, min(3, count - n - 1))))
        for n, node in enumerate(nodes)
    }
    starts: list[Sequence[str]] = [
        random.sample(nodes, random.randint(0, min(2, count))) for _ in range(entries)
    ]
    made = LocalGraph([[(n, 0) for n in some] for some in starts], lambda node: table[node])
    reach = {number: reachable(table, some) for number, some in enumerate(starts)}
    order = list(range(entries))
    random.shuffle(order)
    taken: set[str] = set()
    heard: set[int] = set()
    for number in order:
        made.arrive(number)
        heard.add(number)
        stage = made.take()
        new = [*stage.early, *stage.rest, *stage.terminals]
        assert not taken & set(new) and len(set(new)) == len(new)
        taken |= set(new)
        everything: set[str] = set().union(*reach.values())
        expected = {
            n for n in everything if all(number in heard for number, some in reach.items() if n in some)
        }
        assert taken == expected
        blocked = everything - taken
        for node in stage.early:
            assert reachable(table, [node]) & blocked
        for node in stage.rest:
            assert not reachable(table, [node]) & blocked
        for before, after in zip(stage.early, stage.early[1:], strict=False):
            assert before not in reachable(table, [after])
    assert made.finished


def reachable(table: Table, starts: Sequence[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [following for following, _ in table[node]]
    return found

from __future__ import annotations

from typing import Any

import pytest

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.rules import RULES, contradictions

TEMPLATE = {"spec": {"containers": [{"name": "main"}]}}


def group(name: str = "g", **spec: object) -> RPCGroup:
    return RPCGroup.model_validate(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    )


def role(name: str) -> dict[str, Any]:
    return {"name": name, "template": TEMPLATE}


def test_a_group_that_keeps_every_rule() -> None:
    kept = group(
        name="g" * (56 - len("worker")),
        replicas=3,
        minReplicas=3,
        maxReplicas=3,
        template=TEMPLATE,
        roles=[role("a"), role("b")],
        deviceMaps=[{"from": "a", "to": "b", "devices": {}}, {"from": "b", "to": "worker", "devices": {}}],
        rolloutStrategy={"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "1%"}},
        successPolicy={"role": "worker"},
    )
    assert contradictions(kept) == []


def test_no_template_is_needed_where_there_are_no_elastic_workers() -> None:
    assert contradictions(group(replicas=0, roles=[role("server")])) == []


def test_every_part_that_a_rule_is_on_is_held_against_it() -> None:
    always = {"spec": {"containers": [{"name": "main"}], "restartPolicy": "Always"}}
    roles = [role("a"), {"name": "b", "template": always}]
    lines = contradictions(group(template=always, roles=roles))
    assert [line.split(":")[0] for line in lines] == [
        "spec.template.spec.restartPolicy",
        "spec.roles[1].template.spec.restartPolicy",
    ]


REPEATED = {
    "roles": ([role("a"), role("b"), role("a")], "spec.roles[2]: expected another name"),
    "deviceMaps": (
        [{"from": "worker", "to": "worker", "devices": {"cpu": "cpu"}}] * 2,
        "spec.deviceMaps[1]: expected another from and to",
    ),
    "template": (
        {"spec": {"containers": [{"name": "main"}, {"name": "main"}]}},
        "spec.template.spec.containers[1]: expected another name",
    ),
}


@pytest.mark.parametrize(("field", "value", "fault"), [(f, *rest) for f, rest in REPEATED.items()])
def test_no_two_entries_have_one_name(field: str, value: object, fault: str) -> None:
    (line,) = contradictions(group(**{"template": TEMPLATE, field: value}))
    assert line.startswith(fault)


def test_the_longest_role_counts_for_the_length_of_a_name() -> None:
    assert contradictions(group(name="g" * 50, replicas=0, roles=[role("a" * 6)])) == []
    (line,) = contradictions(group(name="g" * 50, replicas=0, roles=[role("a"), role("a" * 7)]))
    assert line.startswith("metadata.name: expected at most 56 characters")


def test_messages_can_be_written_in_cel() -> None:
    """A message stands between double quotes there, on one line."""
    assert not [rule.expected for rule in RULES if "\n" in rule.expected or "\\" in rule.expected]


def test_a_device_is_the_whole_of_its_name() -> None:
    """`$` of Python's expressions stands before a last newline, too; an API server's does not."""
    maps = [{"from": "worker", "to": "worker", "devices": {"cuda:0\n": "cuda:0"}}]
    (line,) = contradictions(group(template=TEMPLATE, deviceMaps=maps))
    assert line.startswith("spec.deviceMaps[0].devices: expected cpu or a device with its number")

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup.control.model import PodSpec, RPCGroup, RPCGroupSpec

TEMPLATE = {"spec": {"containers": [{"name": "main"}]}}


def group(**spec: object) -> RPCGroup:
    return RPCGroup.model_validate(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "g"}, "spec": spec}
    )


def test_the_worker_is_the_container_named_main_else_the_first() -> None:
    named = PodSpec.model_validate({"containers": [{"name": "proxy"}, {"name": "main"}]})
    unnamed = PodSpec.model_validate({"containers": [{"name": "a"}, {"name": "b"}]})
    assert named.main.name == "main"
    assert unnamed.main.name == "a"


def test_roles_begin_with_the_elastic_one() -> None:
    roles = group(replicas=2, template=TEMPLATE, roles=[{"name": "server", "template": TEMPLATE}]).roles()
    assert [(name, replicas) for name, (replicas, _) in roles.items()] == [("worker", 2), ("server", 1)]


def test_a_group_of_fixed_roles_only() -> None:
    fixed = group(replicas=0, roles=[{"name": "server", "template": TEMPLATE}])
    assert list(fixed.roles()) == ["server"]


def test_scaled_and_suspended_leave_the_original_alone() -> None:
    before = group(replicas=2, template=TEMPLATE)
    after = before.scaled(1, ["g-worker-0"]).suspended()
    assert (before.spec.replicas, before.spec.suspend) == (2, False)
    assert (after.spec.replicas, after.spec.suspend) == (1, True)
    assert after.spec.scale_strategy.workers_to_delete == ["g-worker-0"]


def test_the_defaults_of_a_rollout_are_one_at_a_time_and_none_beyond() -> None:
    update = group().spec.rollout_strategy.rolling_update
    assert (update.max_unavailable, update.max_surge) == (1, 0)


@pytest.mark.parametrize("amount", [0, 3, 100_000, "0%", "9%", "25%", "100%"])
def test_a_number_or_a_percentage(amount: int | str) -> None:
    update = {"maxUnavailable": amount, "maxSurge": amount}
    spec = group(rolloutStrategy={"rollingUpdate": update}).spec
    assert spec.rollout_strategy.rolling_update.max_unavailable == amount
    assert spec.model_dump(by_alias=True)["rolloutStrategy"]["rollingUpdate"] == update


@pytest.mark.parametrize(
    "amount", [-1, 100_001, True, 0.5, None, "1", "101%", "025%", "-5%", "5 %", "%", "5%\n"]
)
def test_neither_a_number_nor_a_percentage(amount: object) -> None:
    with pytest.raises(ValidationError, match="a whole number or a percentage"):
        group(rolloutStrategy={"rollingUpdate": {"maxSurge": amount}})


@pytest.mark.parametrize("name", ["kueue.x-k8s.io/multikueue", "example/a", "example.com/a/b-c_d"])
def test_the_name_of_another_controller(name: str) -> None:
    assert group(managedBy=name).spec.managed_by == name


@pytest.mark.parametrize("name", ["", "multikueue", "/multikueue", "Example.com/a", "example.com/", "a/b c"])
def test_not_the_name_of_a_controller(name: str) -> None:
    with pytest.raises(ValidationError, match="string_pattern_mismatch"):
        group(managedBy=name)


def test_every_field_says_what_it_is() -> None:
    schema = RPCGroupSpec.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    silent = [
        f"{model['title']}.{name}"
        for model in models
        for name, field in model["properties"].items()
        if "description" not in field
    ]
    assert silent == []

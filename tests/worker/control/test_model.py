from __future__ import annotations

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup.control.model import PodSpec, RPCGroup, contradictions

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
    assert contradictions(fixed) == []
    assert list(fixed.roles()) == ["server"]


def test_scaled_and_suspended_leave_the_original_alone() -> None:
    before = group(replicas=2, template=TEMPLATE)
    after = before.scaled(1, ["g-worker-0"]).suspended()
    assert (before.spec.replicas, before.spec.suspend) == (2, False)
    assert (after.spec.replicas, after.spec.suspend) == (1, True)
    assert after.spec.scale_strategy.workers_to_delete == ["g-worker-0"]

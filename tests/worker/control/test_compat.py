from __future__ import annotations

from typing import Any

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup.control.compat import compat_environment
from rpcgroup.control.model import RPCGroup


def group(**spec: Any) -> RPCGroup:
    template = {"spec": {"containers": [{"name": "main", "image": "x"}]}}
    roles = [{"name": "server", "replicas": 2, "template": template}, {"name": "other", "template": template}]
    whole = {"replicas": 3, "template": template, "roles": roles, **spec}
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "g"}, "spec": whole}
    return RPCGroup.model_validate(document)


def test_nothing_unless_the_group_asks_for_it() -> None:
    assert compat_environment(group(), "worker", 0) == {}


def test_ranks_count_through_the_roles() -> None:
    asks = group(compat="Torch")
    workers = [("worker", 0), ("worker", 1), ("worker", 2), ("server", 0), ("server", 1), ("other", 0)]
    found = [compat_environment(asks, *worker) for worker in workers]
    assert [env["RANK"] for env in found] == ["0", "1", "2", "3", "4", "5"]
    assert {(env["WORLD_SIZE"], env["RPCGROUP_COMPAT"]) for env in found} == {("6", "torch")}


def test_those_beyond_their_replicas_have_ranks_of_their_own() -> None:
    asks, beyond = (
        group(compat="Torch"),
        [("worker", 3), ("worker", 4), ("server", 2), ("other", 1), ("other", 2)],
    )
    ranks = {int(compat_environment(asks, *worker)["RANK"]) for worker in beyond}
    assert len(ranks) == len(beyond)
    assert min(ranks) >= 6

from __future__ import annotations

from typing import Any

from rpcgroup.contract import API_VERSION, ENV_DEVICE_MAPS, KIND
from rpcgroup.control.device_maps import device_maps_environment
from rpcgroup.control.model import RPCGroup
from rpcgroup.environment import Environment


def group(*maps: tuple[str, str, dict[str, str]]) -> RPCGroup:
    template = {"spec": {"containers": [{"name": "main", "image": "x"}]}}
    spec: dict[str, Any] = {"template": template, "roles": [{"name": "server", "template": template}]}
    spec["deviceMaps"] = [
        {"from": source, "to": target, "devices": devices} for source, target, devices in maps
    ]
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "g"}, "spec": spec}
    return RPCGroup.model_validate(document)


def test_a_role_without_maps_is_told_nothing() -> None:
    assert device_maps_environment(group(), "worker") == {}
    assert device_maps_environment(group(("server", "worker", {"cuda:0": "cuda:0"})), "worker") == {}


def test_a_worker_reads_the_maps_of_its_own_role() -> None:
    maps = group(
        ("worker", "server", {"cuda:0": "cuda:1"}),
        ("server", "worker", {"cuda:1": "cuda:0"}),
        ("worker", "worker", {"cuda:0": "cuda:0"}),
    )
    environ = device_maps_environment(maps, "worker")
    assert environ.keys() == {ENV_DEVICE_MAPS}
    assert Environment.read(environ).role_device_maps == {
        "server": {"cuda:0": "cuda:1"},
        "worker": {"cuda:0": "cuda:0"},
    }


def test_the_order_in_which_maps_are_written_does_not_matter() -> None:
    one, two = (
        ("worker", "server", {"cuda:0": "cuda:1", "cuda:1": "cuda:0"}),
        ("worker", "worker", {"cpu": "cpu"}),
    )
    other = ("worker", "server", {"cuda:1": "cuda:0", "cuda:0": "cuda:1"})
    assert device_maps_environment(group(one, two), "worker") == device_maps_environment(
        group(two, other), "worker"
    )

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup.control.model import Container, RPCGroup
from rpcgroup.errors import ManifestError
from rpcgroup.local.template import Identity, command_of, require_commands

IDENTITY = Identity(
    namespace="default",
    group="digits",
    name="digits-worker-2",
    role="worker",
    index=2,
    uid="uid",
    rendezvous="etcd://h:1/default/digits",
    secret_file=Path("/s/secret"),
    certificates={"RPCGROUP_TLS_CA_FILE": "/s/ca.crt"},
    compat={"RPCGROUP_COMPAT": "torch", "RANK": "2", "WORLD_SIZE": "3"},
    device_maps={"RPCGROUP_DEVICE_MAPS": "{}"},
)


def container(**fields: object) -> Container:
    return Container.model_validate({"name": "main", "command": ["python"], **fields})


def test_a_worker_is_told_who_it_is_and_where_to_meet() -> None:
    env = command_of(container(), IDENTITY, {"HOME": "/home/ada"}).env
    assert env["HOME"] == "/home/ada"
    assert {k: v for k, v in env.items() if k.startswith("RPCGROUP_") and k != "RPCGROUP_STATS_INTERVAL"} == {
        "RPCGROUP_NAMESPACE": "default",
        "RPCGROUP_GROUP": "digits",
        "RPCGROUP_NAME": "digits-worker-2",
        "RPCGROUP_ROLE": "worker",
        "RPCGROUP_INDEX": "2",
        "RPCGROUP_RENDEZVOUS": "etcd://h:1/default/digits",
        "RPCGROUP_SECRET_FILE": "/s/secret",
        "RPCGROUP_TLS_CA_FILE": "/s/ca.crt",
        "RPCGROUP_COMPAT": "torch",
        "RPCGROUP_DEVICE_MAPS": "{}",
        "RPCGROUP_HOST": "127.0.0.1",
        "RPCGROUP_POD_NAME": "digits-worker-2",
        "RPCGROUP_POD_UID": "uid",
    }


def test_what_the_driver_was_told_of_another_group_is_not_inherited() -> None:
    base = {"RPCGROUP_PORT": "5000", "RPCGROUP_SECRET": "s", "RPCGROUP_LEASE_TTL": "3", "OTHER": "1"}
    env = command_of(container(), IDENTITY, base).env
    assert "RPCGROUP_PORT" not in env
    assert "RPCGROUP_SECRET" not in env
    assert (env["RPCGROUP_LEASE_TTL"], env["OTHER"]) == ("3", "1")


@pytest.mark.parametrize("name", ["python", "python3"])
def test_python_is_the_one_that_runs_this(name: str) -> None:
    arguments = command_of(container(command=[name, "a.py"], args=["-v"]), IDENTITY, {}).arguments
    assert arguments == [sys.executable, "a.py", "-v"]


def test_references_are_replaced_as_kubernetes_does() -> None:
    command = command_of(
        container(
            command=["echo", "$(RPCGROUP_NAME)", "$(MISSING)", "$$(HOME)", "$(GREETING)"],
            env=[{"name": "GREETING", "value": "I am $(RPCGROUP_INDEX)"}],
        ),
        IDENTITY,
        {"HOME": "/home/ada"},
    )
    assert command.arguments == ["echo", "digits-worker-2", "$(MISSING)", "$(HOME)", "I am 2"]
    assert command.env["GREETING"] == "I am 2"


def group(*containers: dict[str, object]) -> RPCGroup:
    spec = {"replicas": 1, "template": {"spec": {"containers": list(containers)}}}
    return RPCGroup.model_validate(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "g"}, "spec": spec}
    )


OBSTACLES = {
    "no command": ({"image": "x"}, ".command: expected a command"),
    "no program": ({"command": ["no-such-program"]}, '.command[0]: expected a program on the PATH, got "no-'),
    "no directory": ({"command": ["python"], "workingDir": "/no/such"}, ".workingDir: expected a directory"),
    "no cluster": (
        {"command": ["python"], "env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]},
        ".env[0].valueFrom: expected value",
    ),
}


@pytest.mark.parametrize(("fields", "fault"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_a_cluster_may_run_and_this_machine_cannot(fields: dict[str, object], fault: str) -> None:
    with pytest.raises(ManifestError) as caught:
        require_commands(group({"name": "side"}, {"name": "main", **fields}))
    assert str(caught.value).startswith(f"spec.template.spec.containers[1]{fault}")


def test_nothing_in_the_way() -> None:
    require_commands(group({"name": "main", "command": ["python", "train.py"]}))
    require_commands(group({"name": "main", "command": ["sh", "-c", "true"]}))

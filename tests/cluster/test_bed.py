"""The cluster that the other tests here trust."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.bed import programs as bed_programs
from tests.cluster.bed.access import Access, CommandError
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program, StartError

Until = Callable[..., None]


def pod(name: str, **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": "none.invalid/none:1"}]},
    }


def test_the_control_plane_is_up_and_says_its_version(access: Access) -> None:
    assert access.kubectl("get", "--raw=/readyz") == "ok"
    version = json.loads(access.kubectl("version", "--output=json"))
    assert version["serverVersion"]["gitVersion"] == version["clientVersion"]["gitVersion"] != "v0.0.0-master"


def test_pods_stay_pending_without_nodes(access: Access, namespace: str) -> None:
    assert access.get("nodes")["items"] == []
    access.kubectl("create", "--namespace", namespace, "--filename=-", input=json.dumps(pod("alone")))
    named = ["--namespace", namespace, "pod/alone"]
    access.kubectl(
        "wait", *named, "--for=jsonpath={.status.conditions[0].reason}=Unschedulable", "--timeout=30s"
    )
    assert access.get(*named)["status"]["phase"] == "Pending"


def test_a_service_account_may_do_what_its_role_says_and_no_more(access: Access, namespace: str) -> None:
    access.kubectl("create", "serviceaccount", "reader", "--namespace", namespace)
    as_reader = access.service_account_kubeconfig(namespace, "reader")
    with pytest.raises(CommandError, match="cannot list resource"):
        access.kubectl("get", "configmaps", kubeconfig=as_reader)
    access.kubectl(
        "create", "role", "reads", "--verb=list", "--resource=configmaps", "--namespace", namespace
    )
    account = f"--serviceaccount={namespace}:reader"
    access.kubectl("create", "rolebinding", "reads", "--role=reads", account, "--namespace", namespace)
    access.kubectl("get", "configmaps", kubeconfig=as_reader)
    with pytest.raises(CommandError, match="cannot create resource"):
        access.kubectl("create", "configmap", "more", kubeconfig=as_reader)


def test_nobody_enters_without_a_token(access: Access, tmp_path: Path) -> None:
    document = json.loads(access.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": "guessed"}
    forged = tmp_path / "forged.kubeconfig"
    forged.write_text(json.dumps(document))
    with pytest.raises(CommandError, match=r"Unauthorized|logged in"):
        access.kubectl("get", "nodes", kubeconfig=forged)


def test_the_python_client_writes_a_lease(access: Access, namespace: str) -> None:
    with access.client() as api:
        leases = client.CoordinationV1Api(api)
        lease = client.V1Lease(
            metadata=client.V1ObjectMeta(name="leader"), spec=client.V1LeaseSpec(holder_identity="me")
        )
        leases.create_namespaced_lease(namespace, lease)
        written = leases.read_namespaced_lease("leader", namespace).spec
        assert written and written.holder_identity == "me"
        with pytest.raises(client.ApiException, match="already exists"):
            leases.create_namespaced_lease(namespace, lease)


def test_what_an_object_owns_goes_with_it(access: Access, namespace: str, until: Until) -> None:
    here = f"--namespace={namespace}"
    access.kubectl("create", here, "configmap", "owner")
    uid = access.get(here, "configmap/owner")["metadata"]["uid"]
    owned = pod("owned")
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    ]
    access.kubectl("create", here, "--filename=-", input=json.dumps(owned))
    access.kubectl("delete", here, "configmap", "owner")
    until(lambda: access.get(here, "pods")["items"] == [])


def test_a_stopped_api_server_comes_back_with_what_it_had(programs: Path, tmp_path: Path) -> None:
    with ControlPlane(tmp_path, programs) as plane:
        plane.access.kubectl("create", "configmap", "kept")
        plane.api_server.kill()
        with pytest.raises(CommandError, match="refused"):
            plane.access.kubectl("get", "configmaps")
        plane.api_server.start()
        assert plane.access.get("configmap/kept")["metadata"]["name"] == "kept"


def test_programs_that_are_not_built_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPCGROUP_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: "/go")
    with pytest.raises(bed_programs.BuildError, match="make test-cluster"):
        bed_programs.built()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(bed_programs.BuildError, match="install Go"):
        bed_programs.build()


def test_a_program_that_does_not_start_says_why(tmp_path: Path) -> None:
    program = Program("doomed", ["sh", "-c", "echo no flour; exit 3"], tmp_path / "log", lambda: False)
    with pytest.raises(StartError, match=r"doomed ended with 3(.|\n)*no flour"):
        program.start()


def test_a_stopped_program_is_gone(tmp_path: Path) -> None:
    program = Program("sleeper", ["sleep", "1000"], tmp_path / "log", lambda: True)
    program.start()
    pid = program.pid
    assert pid
    program.stop()
    assert program.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

"""The definition before a real API server: what it takes, what it refuses, what it makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from kubernetes import client

from rpcgroup.contract import API_VERSION, DOMAIN, KIND
from tests.cluster.bed.access import Access, CommandError

ROOT: Final = Path(__file__).parents[2]
INVALID: Final = sorted((ROOT / "tests/cluster/invalid").glob("*.yaml"))
TEMPLATE: Final = {"spec": {"containers": [{"name": "main", "image": "worker"}]}}


@pytest.fixture(scope="module", autouse=True)
def definition(control_plane: Any) -> None:
    access: Access = control_plane.access
    access.kubectl("apply", "--server-side", "-f", str(ROOT / "manifests/crd.yaml"))
    access.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/rpcgroups.{DOMAIN}")


def group(name: str, **spec: object) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def apply(access: Access, namespace: str, *documents: object, dry_run: str = "none") -> dict[str, Any]:
    """As a person does; the last document as the API server made it."""
    answer = ""
    for document in documents:
        answer = access.kubectl(
            "apply",
            f"--namespace={namespace}",
            "--validate=strict",
            f"--dry-run={dry_run}",
            "--output=json",
            "--filename=-",
            input=json.dumps(document),
        )
    shown: dict[str, Any] = json.loads(answer)
    return shown


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_group_is_refused(path: Path, access: Access, request: pytest.FixtureRequest) -> None:
    """The message names the field and the rule. Of two documents the first is taken, the change to the second not."""
    field, rule = (line.partition(": ")[2] for line in path.read_text().splitlines()[:2])
    *before, refused = yaml.safe_load_all(path.read_text())
    namespace = request.getfixturevalue("namespace") if before else "default"
    if before:
        apply(access, namespace, *before)
    with access.client() as api:
        groups = client.CustomObjectsApi(api)
        where = DOMAIN, "v1alpha1", namespace, "rpcgroups"
        with pytest.raises(client.ApiException) as caught:
            if before:
                name = refused["metadata"]["name"]
                now: Any = groups.get_namespaced_custom_object(*where, name)
                refused["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"]
                groups.replace_namespaced_custom_object(*where, name, refused, field_validation="Strict")
            else:
                groups.create_namespaced_custom_object(
                    *where, refused, field_validation="Strict", dry_run="All"
                )
    message = json.loads(caught.value.body or "")["message"]
    assert field in message
    assert rule in message


def test_what_is_not_given_has_its_default(access: Access) -> None:
    spec = apply(
        access,
        "default",
        group("g", template=TEMPLATE, roles=[{"name": "a", "template": TEMPLATE}]),
        dry_run="server",
    )["spec"]
    assert spec == {
        "replicas": 1,
        "minReplicas": 0,
        "template": TEMPLATE,
        "roles": [{"name": "a", "replicas": 1, "template": TEMPLATE}],
        "backoffLimit": 6,
        "suspend": False,
        "compat": "None",
        "security": {"tls": False},
        "rolloutStrategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
    }


def test_a_template_passes_through_whole(access: Access) -> None:
    """More than the model knows of a pod, at every level."""
    template = {
        "metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/f"]},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "tolerationSeconds": 3}],
            "containers": [
                {
                    "name": "main",
                    "image": "worker",
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "resources": {"limits": {"nvidia.com/gpu": 1}},
                    "ports": [{"containerPort": 80, "name": "web"}],
                }
            ],
        },
    }
    assert (
        apply(access, "default", group("g", template=template), dry_run="server")["spec"]["template"]
        == template
    )


def test_the_longest_names_and_the_largest_lists_are_taken(access: Access) -> None:
    """Rules have a budget while they run, too."""
    roles = [{"name": f"{'r' * 28}{n:02}", "replicas": 0, "template": TEMPLATE} for n in range(64)]
    maps = [
        {"from": a["name"], "to": b["name"], "devices": {f"cuda:{n}": f"cuda:{n}" for n in range(32)}}
        for a in roles[:16]
        for b in roles[-16:]
    ]
    large = group(
        "g" * 26, template=TEMPLATE, roles=roles, deviceMaps=maps, successPolicy={"role": roles[-1]["name"]}
    )
    assert len(apply(access, "default", large, dry_run="server")["spec"]["deviceMaps"]) == 256


def test_device_maps_change_while_the_group_is_suspended(access: Access, namespace: str) -> None:
    def maps(device: str) -> list[dict[str, Any]]:
        return [{"from": "worker", "to": "worker", "devices": {"cuda:0": device}}]

    for suspend, device in [
        (False, "cuda:0"),
        (True, "cuda:0"),
        (True, "cuda:1"),
        (False, "cuda:2"),
        (False, "cuda:2"),
    ]:
        written = group("g", template=TEMPLATE, suspend=suspend, deviceMaps=maps(device))
        assert apply(access, namespace, written)["spec"]["deviceMaps"] == maps(device)


def test_tls_comes_and_goes_while_the_group_is_suspended(access: Access, namespace: str) -> None:
    for suspend, tls in [(False, False), (True, False), (True, True), (False, True), (False, True)]:
        written = group("g", template=TEMPLATE, suspend=suspend, security={"tls": tls})
        assert apply(access, namespace, written)["spec"]["security"] == {"tls": tls}


def test_kubectl_scale(access: Access, namespace: str) -> None:
    apply(access, namespace, group("g", template=TEMPLATE, maxReplicas=5))
    access.kubectl("scale", "rpcg/g", "--replicas=4", f"--namespace={namespace}")
    assert access.get("rpcg/g", f"--namespace={namespace}")["spec"]["replicas"] == 4
    with pytest.raises(CommandError, match=r"expected at most spec\.maxReplicas, got 6"):
        access.kubectl("scale", "rpcg/g", "--replicas=6", f"--namespace={namespace}")


def test_the_status_is_written_apart_and_scale_reads_it(access: Access, namespace: str) -> None:
    status = {
        "observedGeneration": 1,
        "replicas": 3,
        "readyReplicas": 2,
        "updatedReplicas": 3,
        "selector": "rpcgroup.dev/group=g",
        "conditions": [
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "observedGeneration": 1,
            }
            for kind, value, reason in [
                ("Available", "True", "AllReady"),
                ("Progressing", "False", "AllReady"),
            ]
        ],
        "members": [
            {"name": "g-worker-0", "role": "worker", "state": "ready", "failures": 0, "incarnation": 2**40}
        ],
    }
    here = f"--namespace={namespace}"
    written = apply(access, namespace, {**group("g", replicas=3, template=TEMPLATE), "status": status})
    assert "status" not in written
    access.kubectl(
        "patch",
        "rpcg/g",
        here,
        "--subresource=status",
        "--type=merge",
        f"--patch={json.dumps({'status': status, 'spec': {'replicas': 1}})}",
    )
    now = access.get("rpcg/g", here)
    assert (now["status"], now["spec"]["replicas"], now["metadata"]["generation"]) == (status, 3, 1)
    scale = json.loads(
        access.kubectl("get", "--raw", f"/apis/{API_VERSION}/namespaces/{namespace}/rpcgroups/g/scale")
    )
    assert (scale["spec"], scale["status"]) == (
        {"replicas": 3},
        {"replicas": 3, "selector": "rpcgroup.dev/group=g"},
    )
    heads, values = (line.split() for line in access.kubectl("get", "rpcg", here).splitlines())
    assert heads == ["NAME", "DESIRED", "READY", "AVAILABLE", "STATUS", "AGE"]
    assert values[:-1] == ["g", "3", "2", "True", "AllReady"]
    assert "rpcgroup.rpcgroup.dev/g" in access.kubectl("get", "all", here)


def test_kubectl_explain_says_what_a_field_is(access: Access) -> None:
    shown = access.kubectl("explain", "rpcgroup.spec.rolloutStrategy.rollingUpdate.maxSurge")
    assert "rounded up" in " ".join(shown.split())
    assert "<no description>" not in access.kubectl("explain", "rpcgroup.spec")
    assert "<no description>" not in access.kubectl("explain", "rpcgroup.status")

"""The samples before a real API server: their groups, the pods that are made of them, and what stands beside them.

Of kinds that are not Kubernetes' own and not this project's the API server knows what `schemas/` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from rpcgroup.contract import KIND
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.plan import Create
from rpcgroup.control.pod import pod_name
from rpcgroup_operator import render
from tests.cluster.bed.access import Access, CommandError
from tests.cluster.bed.control_plane import ControlPlane

ROOT: Final = Path(__file__).parents[2]
SAMPLES: Final = sorted((ROOT / "manifests/samples").glob("*.yaml"))
SCHEMAS: Final = ROOT / "tests/cluster/schemas"
DEFINITIONS: Final = [ROOT / "manifests/crd.yaml", *sorted(SCHEMAS.glob("*.yaml"))]
ENDPOINT: Final = render.Rendezvous("etcd.example.com:2379")


@pytest.fixture(scope="module", autouse=True)
def definitions(control_plane: ControlPlane) -> Iterator[None]:
    access = control_plane.access
    for path in DEFINITIONS:
        access.kubectl("apply", "--server-side", f"--filename={path}")
        access.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"--filename={path}")
    yield
    for path in sorted(SCHEMAS.glob("*.yaml")):
        access.kubectl("delete", "--wait=false", f"--filename={path}")


def check(access: Access, namespace: str, document: object) -> None:
    """As if it were applied, with every field known."""
    access.kubectl(
        *("apply", "--dry-run=server", "--validate=strict", f"--namespace={namespace}", "--filename=-"),
        input=json.dumps(document),
    )


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_taken(path: Path, access: Access, namespace: str) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert KIND in [document["kind"] for document in documents]
    for document in documents:
        check(access, namespace, document)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_pods_of_a_sample_are_taken(path: Path, access: Access, namespace: str) -> None:
    """A group's definition lets a template pass whole; what is misspelt in it shows in its pods only."""
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == KIND:
            for pod in pods(document, namespace):
                check(access, namespace, pod)


def pods(document: dict[str, Any], namespace: str) -> Iterator[dict[str, Any]]:
    """One of each role, as the operator makes it, without the owner that is not there."""
    group = RPCGroup.model_validate(
        {**document, "metadata": {**document["metadata"], "namespace": namespace}}
    )
    for role in group.roles():
        create = Create(pod_name(group.metadata.name, role, 0), role, 0)
        pod = render.pod(group, "none", create, ENDPOINT)
        del pod["metadata"]["ownerReferences"]
        yield pod


@pytest.mark.parametrize(
    ("sample", "kind", "field"),
    [
        ("kueue", "LocalQueue", "clusterQueu"),
        ("volcano", "PodGroup", "minMembers"),
        ("actor-learner", "HorizontalPodAutoscaler", "maxReplica"),
    ],
)
def test_a_misspelt_field_is_found(
    sample: str, kind: str, field: str, access: Access, namespace: str
) -> None:
    documents = yaml.safe_load_all((ROOT / f"manifests/samples/{sample}.yaml").read_text())
    (document,) = (d for d in documents if d["kind"] == kind)
    document["spec"][field] = 1
    with pytest.raises(CommandError, match=f'unknown field "spec.{field}"'):
        check(access, namespace, document)


def test_an_autoscaler_stays_within_its_groups_bounds() -> None:
    """The API server refuses a number of replicas that the group does not allow, whoever sets it."""
    for path in SAMPLES:
        kinds = {d["kind"]: d.get("spec") for d in yaml.safe_load_all(path.read_text())}
        if scaler := kinds.get("HorizontalPodAutoscaler"):
            group = kinds[KIND]
            assert scaler["minReplicas"] >= group["minReplicas"], path
            assert scaler["maxReplicas"] <= group["maxReplicas"], path

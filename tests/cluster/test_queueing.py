"""A group whose pods somebody else lets in one by one, as Kueue does: by a scheduling gate, and a label it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from rpcgroup import contract
from tests.cluster.bed.access import Access

SAMPLE: Final = Path(__file__).parents[2] / "manifests/samples/kueue.yaml"
GATE: Final = "kueue.x-k8s.io/admission"
QUEUE: Final = "kueue.x-k8s.io/queue-name"
pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def group() -> dict[str, Any]:
    """The sample's, with the gate that Kueue's webhook adds to each of its pods."""
    documents = yaml.safe_load_all(SAMPLE.read_text())
    (group,) = (document for document in documents if document["kind"] == contract.KIND)
    group["spec"]["template"]["spec"]["schedulingGates"] = [{"name": GATE}]
    return dict(group)


@pytest.mark.usefixtures("operator", "workers")
def test_it_works_with_those_that_are_let_in(
    group: dict[str, Any], access: Access, namespace: str, until: Callable[..., None]
) -> None:
    here = f"--namespace={namespace}"
    access.kubectl("apply", here, "--filename=-", input=json.dumps(group))

    def pods(*arguments: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in access.get("pods", here, *arguments)["items"]]

    def ready() -> int:
        return int(access.get("rpcgroup/queued", here).get("status", {}).get("readyReplicas", 0))

    until(lambda: len(pods(f"--selector={QUEUE}=training")) == group["spec"]["replicas"])
    for number, name in enumerate(pods()[:2], start=1):
        open_gate = json.dumps([{"op": "remove", "path": "/spec/schedulingGates"}])
        access.kubectl("patch", f"pod/{name}", here, "--type=json", f"--patch={open_gate}")
        until(lambda number=number: ready() == number)
    access.kubectl("wait", "rpcgroup/queued", here, "--for=condition=Available", "--timeout=30s")
    access.kubectl("scale", "rpcgroup/queued", here, "--replicas=2")
    until(lambda: len(pods()) == 2)
    assert ready() == 2, "those that still waited went first"

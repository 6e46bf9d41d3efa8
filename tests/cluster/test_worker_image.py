"""The worker's image as its Dockerfile makes it, as a group's pods: non-root, with a read-only root file system."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from rpcgroup import contract
from tests.cluster.bed.build_image import build_image
from tests.cluster.bed.installation import SOURCES
from tests.cluster.bed.real_cluster import RealCluster

IMAGE: Final = "docker.io/rpcgroup/worker:0.1.0"
PACKAGES: Final = "/opt/packages"
"""Where this machine's packages are mounted: torch is the user's, and gigabytes."""
CALL: Final = """
import os, sys
import rpcgroup as rpc
rpc.init_rpc("guest")
print(rpc.rpc_sync("g-worker-1", os.getenv, args=("RPCGROUP_NAME",)), sys.prefix)
rpc.shutdown()
"""
RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.mark.timeout(900)
def test_workers_of_the_image_meet(
    operator_pods: RealCluster, real_namespace: str, until: Callable[..., None], tmp_path: Path
) -> None:
    image = tmp_path / "worker.tar"
    build_image(SOURCES / "worker" / "Dockerfile", SOURCES, IMAGE, image)
    operator_pods.load(image)
    access, here = operator_pods.access, f"--namespace={real_namespace}"
    access.kubectl("create", here, "--filename=-", input=json.dumps(group()))
    access.kubectl("wait", here, "rpcgroup/g", "--for=condition=Available", "--timeout=55s")
    until(lambda: access.get("rpcgroup/g", here)["status"]["readyReplicas"] == 2)
    inside = ("exec", here, "g-worker-0", "--")
    assert access.kubectl(*inside, "id", "-u").strip() == "65532"
    guest = ("env", "-u", contract.ENV_POD_UID, "-u", contract.ENV_POD_NAME, "python", "-c", CALL)
    assert access.kubectl(*inside, *guest).splitlines()[-1] == "g-worker-1 /opt/rpcgroup"
    access.kubectl(*inside, "rpcgroup", "doctor")
    access.kubectl("delete", here, "rpcgroup/g", "--timeout=55s")


def group() -> dict[str, object]:
    container = {
        "name": "main",
        "image": IMAGE,
        "securityContext": RESTRICTED,
        "env": [{"name": "PYTHONPATH", "value": PACKAGES}],
        "volumeMounts": [{"name": "packages", "mountPath": PACKAGES, "readOnly": True}],
    }
    packages = {"name": "packages", "hostPath": {"path": sysconfig.get_path("purelib")}}
    template = {"spec": {"containers": [container], "volumes": [packages]}}
    return {
        "apiVersion": contract.API_VERSION,
        "kind": contract.KIND,
        "metadata": {"name": "g"},
        "spec": {"replicas": 2, "minReplicas": 2, "template": template},
    }

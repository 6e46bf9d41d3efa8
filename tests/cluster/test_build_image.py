"""An image of a Dockerfile, built here and run as a pod that may do nothing more than it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.bed.build_image import build_image
from tests.cluster.bed.real_cluster import RealCluster
from tests.cluster.bed.real_node import RequirementError

DOCKERFILE: Final = """
ARG BASE=python:3.12-slim
FROM $BASE AS build
RUN python3 -m venv /opt/app && /opt/app/bin/pip install --no-cache-dir iniconfig
FROM $BASE
COPY --from=build /opt/app /opt/app
COPY said.txt /opt/said.txt
USER 65532:65532
ENTRYPOINT ["/opt/app/bin/python", "-c"]
CMD ["import iniconfig, os; print(os.getuid(), open('/opt/said.txt').read())"]
"""
RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.mark.timeout(900)  # the base is made once, which takes minutes
def test_an_image_of_a_dockerfile_runs(
    real_cluster: RealCluster, real_namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "said.txt").write_text("built here")
    image = tmp_path / "image.tar"
    try:
        build_image(tmp_path / "Dockerfile", tmp_path, "rpcgroup.test/said:1", image)
    except RequirementError as exc:
        pytest.fail(str(exc), pytrace=False)
    real_cluster.load(image)

    access, here = real_cluster.access, f"--namespace={real_namespace}"
    access.kubectl("label", "namespace", real_namespace, "pod-security.kubernetes.io/enforce=restricted")
    container = {"name": "main", "image": "rpcgroup.test/said:1", "securityContext": RESTRICTED}
    spec = {"containers": [container], "restartPolicy": "Never"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "says"}, "spec": spec}
    access.kubectl("create", here, "--filename=-", input=json.dumps(pod))
    access.kubectl("wait", here, "pod/says", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=50s")
    assert access.kubectl("logs", here, "says") == "65532 built here\n"

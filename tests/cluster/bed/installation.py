"""The project on a cluster with real pods: its chart, with images made here."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from rpcgroup.contract import DOMAIN
from tests.cluster.bed.build_image import build_image
from tests.cluster.bed.host_python import on_this_machine
from tests.cluster.bed.image import write_image
from tests.cluster.bed.real_cluster import RealCluster

__all__ = ["NAMESPACE", "installed", "of_this_machine"]

NAMESPACE: Final = "rpcgroup-system"
SOURCES: Final = Path(__file__).parents[3]
RELEASE: Final = "rpcgroup"
OPERATOR_IMAGE: Final = "docker.io/rpcgroup/operator:0.1.0"
ETCD_IMAGE: Final = "rpcgroup.test/etcd:1"
VALUES: Final = {
    "crd": {"keep": False},
    "etcd": {
        "image": {"repository": "rpcgroup.test/etcd", "tag": "1"},
        "persistence": {"enabled": False},  # nobody makes volumes on this cluster
    },
}
INSTALL_TIMEOUT: Final = "--timeout=55s"


@contextlib.contextmanager
def installed(cluster: RealCluster, programs: Path) -> Iterator[None]:
    """The operator of these sources is available in the block; nothing of it is left after.

    Raises `CommandError`, `ImageError`, or `RequirementError` for what the machine lacks.
    """
    with tempfile.TemporaryDirectory() as folder:
        for image in _images(Path(folder), programs):
            cluster.load(image)
            image.unlink()
    access, here = cluster.access, f"--namespace={NAMESPACE}"
    # Another release may have left it, and Helm takes over nothing.
    access.kubectl("delete", "crd", f"rpcgroups.{DOMAIN}", "--ignore-not-found")
    access.kubectl("create", "namespace", NAMESPACE)
    access.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    try:
        chart = str(SOURCES / "charts" / "rpcgroup")
        access.helm("install", RELEASE, chart, here, "--values=-", input=json.dumps(VALUES))
        for name in ("statefulset/rpcgroup-etcd", "deployment/rpcgroup-operator"):
            access.kubectl("rollout", "status", here, INSTALL_TIMEOUT, name)
        yield
        access.helm("uninstall", RELEASE, here, "--wait", INSTALL_TIMEOUT)
    finally:
        access.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def of_this_machine(manifest: Path) -> dict[str, Any]:
    """A group's manifest, its workers changed to run this machine's Python."""
    group: dict[str, Any] = yaml.safe_load(manifest.read_text())
    for role in (group["spec"], *group["spec"].get("roles", [])):
        role["template"]["spec"] = on_this_machine(role["template"]["spec"])
    return group


def _images(folder: Path, programs: Path) -> Iterator[Path]:
    operator, etcd = folder / "operator.tar", folder / "etcd.tar"
    build_image(SOURCES / "operator" / "Dockerfile", SOURCES, OPERATOR_IMAGE, operator)
    yield operator
    write_image(etcd, ETCD_IMAGE, {"usr/local/bin/etcd": (programs / "etcd").resolve()}, folders=["tmp"])
    yield etcd

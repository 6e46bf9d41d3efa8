"""Pods that run this machine's Python: its files are mounted, so that an image need not hold gigabytes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from tests.cluster.bed.image import write_image

__all__ = ["HOST_IMAGE", "host_python", "write_host_image"]

HOST_IMAGE: Final = "rpcgroup.test/host:1"
"""Nothing but the folders and links that the mounted files expect."""

SOURCES: Final = Path(__file__).parents[3]
MOUNTED: Final = ("/usr", "/etc/ssl", sys.base_prefix, sys.prefix, str(SOURCES))


def write_host_image(path: Path) -> None:
    write_image(
        path,
        HOST_IMAGE,
        files={"etc/passwd": Path("/etc/passwd"), "etc/group": Path("/etc/group")},
        links={name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")},
        folders=["etc", "tmp", "usr", "var", "run"],
    )


def host_python(*arguments: str) -> dict[str, Any]:
    """A pod's spec: one container `main` that runs `python ARGUMENTS` in the folder of these sources."""
    paths = sorted(set(MOUNTED))
    return {
        "containers": [
            {
                "name": "main",
                "image": HOST_IMAGE,
                "command": [sys.executable, *arguments],
                "workingDir": str(SOURCES),
                "env": [{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
                "volumeMounts": [
                    {"name": f"host-{index}", "mountPath": path, "readOnly": True}
                    for index, path in enumerate(paths)
                ],
            }
        ],
        "volumes": [
            {"name": f"host-{index}", "hostPath": {"path": path}} for index, path in enumerate(paths)
        ],
    }

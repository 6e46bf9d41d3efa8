"""Pods that run this machine's Python: its files are mounted, so that an image need not hold gigabytes of them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any, Final

from tests.cluster.bed.image import write_image

__all__ = ["HOST_IMAGE", "host_python", "on_this_machine", "write_host_image"]

HOST_IMAGE: Final = "rpcgroup.test/host:1"
"""Nothing but the folders and links that the mounted files expect."""

SOURCES: Final = Path(__file__).parents[3]
MOUNTED: Final = ("/usr", "/etc/ssl", sys.base_prefix, sys.prefix, str(SOURCES))
ENVIRONMENT: Final = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}


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
    return on_this_machine({"containers": [{"name": "main", "command": ["python", *arguments]}]})


def on_this_machine(spec: dict[str, Any], *more: Path) -> dict[str, Any]:
    """The same pod's spec with each image replaced by this machine's files (and `more` of them), read-only.

    `python` is the interpreter that runs this, with its packages; the working directory that of these sources.
    """
    paths = sorted({*MOUNTED, *map(str, more)})
    changed = copy.deepcopy(spec)
    changed["volumes"] = [
        *changed.get("volumes", []),
        *({"name": f"host-{index}", "hostPath": {"path": path}} for index, path in enumerate(paths)),
    ]
    for container in changed["containers"]:
        container |= {"image": HOST_IMAGE, "workingDir": str(SOURCES)}
        container["env"] = [
            *({"name": name, "value": value} for name, value in ENVIRONMENT.items()),
            *container.get("env", []),
        ]
        container["volumeMounts"] = [
            *container.get("volumeMounts", []),
            *(
                {"name": f"host-{index}", "mountPath": path, "readOnly": True}
                for index, path in enumerate(paths)
            ),
        ]
    return changed

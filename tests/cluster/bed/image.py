"""Container images from files of this machine: no registry, no builder.

The result is an OCI image layout in a tar file, as `ctr images import` takes it.
https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["write_image"]

ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
MEDIA: Final = "application/vnd.oci.image"


def write_image(
    path: Path,
    name: str,
    files: Mapping[str, Path] | None = None,
    links: Mapping[str, str] | None = None,
    folders: Sequence[str] = (),
    entrypoint: Sequence[str] = (),
) -> None:
    """One layer: files from here, symbolic links and empty folders, all of root. Paths without the first slash.

    `name` with a tag; not `latest`, for which the kubelet would ask a registry. The layer is held in memory.
    """
    layer = _layer(files or {}, links or {}, folders)
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    with tarfile.open(path, "w") as image:
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA}.manifest.v1+json",
            "config": _add_blob(image, json.dumps(config).encode(), "config.v1+json"),
            "layers": [_add_blob(image, layer, "layer.v1.tar")],
        }
        entry = _add_blob(image, json.dumps(manifest).encode(), "manifest.v1+json")
        entry["annotations"] = {"io.containerd.image.name": name}
        _add(image, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        _add(image, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')


def _layer(files: Mapping[str, Path], links: Mapping[str, str], folders: Sequence[str]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for name, source in files.items():
            _add(tar, name, source.read_bytes(), mode=0o755)
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE
            entry.linkname = target
            tar.addfile(entry)
    return written.getvalue()


def _add_blob(image: tarfile.TarFile, data: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    _add(image, f"blobs/sha256/{digest}", data)
    return {"mediaType": f"{MEDIA}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(data))

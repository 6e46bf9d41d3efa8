"""Images from the project's Dockerfiles, without a container engine or a registry: buildah in a chroot, as root.

Where a Dockerfile has `ARG BASE=python:3.12-slim` and `FROM $BASE`, the base here is a Debian of the machine's own
release with its Python, made by debootstrap once and kept in the cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.cluster.bed.programs import cache
from tests.cluster.bed.real_node import RequirementError

__all__ = ["BASE_IMAGE", "ImageError", "build_image"]

BASE_IMAGE: Final = "localhost/rpcgroup.test/python:1"
PACKAGES: Final = "python3-minimal,libpython3-stdlib,python3-venv,ca-certificates"
NEEDED: Final = ("buildah", "debootstrap", "tar")
BUILD_SECONDS: Final = 1800.0
NOT_IN_AN_IMAGE: Final = (
    "./dev/*",
    "./proc/*",
    "./sys/*",
    "./var/cache/apt/archives/*.deb",
    "./var/lib/apt/lists/*",
)


class ImageError(Exception):
    """An image cannot be built; the message holds the builder's last lines."""


def build_image(dockerfile: Path, context: Path, name: str, archive: Path) -> None:
    """Write the archive of an image `name`, with its tag, as `RealCluster.load` takes it.

    `RUN` reaches the network as this machine does.

    Raises `ImageError`, or `RequirementError` for what the machine lacks.
    """
    _check_requirements()
    _make_base()
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch, "pip.conf")
        settings.write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
        # The machine's authorities and pip's settings are there for RUN, and not in the image.
        _buildah(
            "build",
            *("--pull=never", "--isolation=chroot", "--build-arg", f"BASE={BASE_IMAGE}"),
            *("--volume", "/etc/ssl/certs:/etc/ssl/certs:ro", "--volume", f"{settings}:/etc/pip.conf:ro"),
            *("--file", str(dockerfile), "--tag", name, str(context)),
        )
    # Not an OCI archive, which buildah compresses: that takes longer than the rest.
    _buildah("push", name, f"docker-archive:{archive}:{name}")
    _buildah("rmi", name)


def _check_requirements() -> None:
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        raise RequirementError(
            f"images are built with {', '.join(missing)}, not found here; do: tests/cluster/install.sh (as root)"
        )
    if os.geteuid() != 0:
        raise RequirementError("images are built as root")


def _make_base() -> None:
    """In buildah's storage, from a tar file that is kept: the storage is quick to fill again."""
    if BASE_IMAGE in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    files = cache() / "images" / "base.tar"
    if not files.exists():
        _bootstrap(files)
    container = _buildah("from", "scratch").strip()
    try:
        _buildah("add", "--quiet", container, str(files), "/")
        _buildah("commit", "--quiet", container, BASE_IMAGE)
    finally:
        _buildah("rm", container)


def _bootstrap(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        root, unfinished = Path(scratch, "root"), Path(scratch, "base.tar")
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", _release(), str(root))
        excluded = [f"--exclude={pattern}" for pattern in NOT_IN_AN_IMAGE]
        _run("tar", "-C", str(root), "-cf", str(unfinished), *excluded, "--numeric-owner", ".")
        unfinished.rename(path)


def _release() -> str:
    """Debian's name for it, as `bookworm`."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]


def _buildah(command: str, *arguments: str) -> str:
    """Its storage is in the cache; the machine's own, if it has one, is left alone."""
    store = cache() / "images" / "storage"
    where = (
        "--root",
        str(store),
        "--runroot",
        str(cache() / "images" / "run"),
        "--storage-driver",
        "overlay",
    )
    return _run("buildah", *where, command, *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise ImageError(f"{' '.join(command)} ended with {done.returncode}:\n{last}")
    return done.stdout

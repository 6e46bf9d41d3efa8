"""A node with a kubelet and containerd that runs real pods. It lives in namespaces of its own (`namespaces`).

Pods, services and the node have addresses that exist in there only, and no packet leaves it. Needs root and
Debian's containerd, runc and CNI plugins.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.cluster.bed.control_plane import SERVICES, ControlPlane
from tests.cluster.bed.image import write_image
from tests.cluster.bed.process import Program

__all__ = [
    "ADDRESS",
    "NODE",
    "RealNode",
    "RequirementError",
    "check_requirements",
    "import_command",
    "prepare_machine",
]

NODE: Final = "real-0"
ADDRESS: Final = "10.88.0.1"
"""The node's."""

PODS: Final = "10.244.0.0/24"
SOCKET: Final = "/run/containerd/containerd.sock"
PAUSE_IMAGE: Final = "rpcgroup.test/pause:1"
CNI: Final = Path("/usr/lib/cni")
TEMPLATES: Final = Path(__file__).with_name("node")
NEEDED: Final = ("containerd", "ctr", "runc", "ip", "nft", "mount", "nsenter")

KERNEL: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet sets, and would set on the whole machine: it finds files of its own in their place."""


class RequirementError(Exception):
    """The machine lacks something; the message says how to get it."""


def check_requirements() -> None:
    """Raises `RequirementError`."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if not CNI.joinpath("bridge").exists():
        missing.append(f"{CNI}/bridge")
    if missing:
        raise RequirementError(
            f"real pods need {', '.join(missing)}, not found here; on Debian do: tests/cluster/install.sh (as root)"
        )
    if os.geteuid() != 0:
        raise RequirementError("real pods need root, to make namespaces and mounts")


def import_command(image: Path) -> list[str]:
    """What gives the node an image from its archive (Docker's or OCI's); runs in the node's namespaces."""
    return ["ctr", "-a", SOCKET, "-n", "k8s.io", "images", "import", str(image)]


def prepare_machine(folder: Path) -> None:
    """Make the inside of new namespaces the node's machine; `folder` keeps what is mounted over its files."""
    for command in (
        "ip link set lo up",
        f"ip address add {ADDRESS}/32 dev lo",
        f"ip route add {SERVICES} dev lo",  # kube-proxy rewrites them, but they need a route before
        "hostname " + NODE,
        "mount -t tmpfs tmpfs /run",
    ):
        _run(*command.split())
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for name, value in KERNEL.items():
        _stand_in(folder / "machine" / name, f"{value}\n", f"/proc/sys/{name}")
    resolver = f"nameserver {ADDRESS}\nsearch svc.cluster.local cluster.local\n"
    _stand_in(folder / "machine" / "resolv.conf", resolver, os.path.realpath("/etc/resolv.conf"))


class RealNode:
    """containerd, kubelet, kube-proxy and CoreDNS on a control plane that runs; a context manager.

    The control plane has to be advertised at ADDRESS.
    """

    def __init__(self, plane: ControlPlane, cgroup: str, images: Sequence[Path] = ()) -> None:
        """`cgroup` exists in every hierarchy; `images` are archives that pods can name."""
        self._plane = plane
        self._folder = plane.folder / "node"
        self._images = images
        values = {
            "@FOLDER@": str(plane.folder),
            "@ADDRESS@": ADDRESS,
            "@NODE@": NODE,
            "@PODS@": PODS,
            "@PAUSE@": PAUSE_IMAGE,
            "@CNI@": str(CNI),
            "@CGROUP@": cgroup,
        }
        self._folder.mkdir()
        for template in TEMPLATES.iterdir():
            text = template.read_text()
            for mark, value in values.items():
                text = text.replace(mark, value)
            (self._folder / template.name).write_text(text)
        self.containerd = self._containerd()
        self.kubelet = self._kubelet()
        self._others = self._kube_proxy(), self._coredns()

    def start(self) -> None:
        """Returns when the node is Ready. Raises `StartError` or `CommandError`; then nothing of it runs."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.containerd.start()
            pause = self._folder / "pause.tar"
            write_image(pause, PAUSE_IMAGE, {"pause": self._plane.programs / "pause"}, entrypoint=["/pause"])
            for image in (pause, *self._images):
                _run(*import_command(image))
            self.kubelet.start()
            for program in self._others:
                program.start()
            self._plane.access.kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"node/{NODE}")
            undo.pop_all()

    @property
    def clients(self) -> Sequence[Program]:
        """Those that watch the API server. The containers live on while they are restarted."""
        return self.kubelet, *self._others

    def stop(self) -> None:
        """The containers end with the namespaces."""
        for program in reversed((self.containerd, self.kubelet, *self._others)):
            program.stop()

    def __enter__(self) -> RealNode:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _containerd(self) -> Program:
        def is_ready() -> bool:
            asked = subprocess.run(["ctr", "-a", SOCKET, "version"], capture_output=True, check=False)
            return asked.returncode == 0

        command = ["containerd", "--config", str(self._folder / "containerd.toml")]
        return Program("containerd", command, self._plane.logs / "containerd.log", is_ready)

    def _kubelet(self) -> Program:
        return self._plane.program(
            "kubelet",
            f"--kubeconfig={self._plane.kubeconfig_of(f'system:node:{NODE}')}",
            f"--config={self._folder / 'kubelet.yaml'}",
            f"--root-dir={self._folder / 'kubelet'}",
            f"--cert-dir={self._plane.keys / 'kubelet'}",
            f"--hostname-override={NODE}",
            f"--node-ip={ADDRESS}",
            health="http://127.0.0.1:10248/healthz",
        )

    def _kube_proxy(self) -> Program:
        config = f"--config={self._folder / 'proxy.yaml'}"
        return self._plane.program("kube-proxy", config, health="http://127.0.0.1:10256/healthz")

    def _coredns(self) -> Program:
        config = str(self._folder / "Corefile")
        return self._plane.program("coredns", "-conf", config, health="http://127.0.0.1:8181/ready")


def _stand_in(path: Path, text: str, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    _run("mount", "--bind", str(path), target)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except subprocess.CalledProcessError as exc:
        raise RuntimeError(f"{' '.join(command)}: {exc.stderr.strip()}") from exc

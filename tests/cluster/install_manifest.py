"""`make install-manifest`: manifests/install.yaml, for who has no Helm, from the chart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.cluster.bed import programs

__all__ = ["install_manifest"]

CHART: Final = Path(__file__).parents[2] / "charts/rpcgroup"
NAMESPACE: Final = "rpcgroup-system"
HEADER: Final = f"""\
# Made by `make install-manifest` from charts/rpcgroup; not to be edited.
#   kubectl apply --server-side --filename manifests/install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
HELM_SECONDS: Final = 60.0


def install_manifest(helm: Path) -> str:
    """The chart with its own values, without what only Helm runs."""
    command = [str(helm), "template", "rpcgroup", str(CHART), f"--namespace={NAMESPACE}", "--no-hooks"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HELM_SECONDS, check=True)
    return HEADER + done.stdout


if __name__ == "__main__":
    sys.stdout.write(install_manifest(programs.built() / "helm"))

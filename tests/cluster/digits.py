"""`make demo-cluster`: the digits job as real pods, scaled 3 -> 6 -> 2 and hurt on the way, until it is Complete.

It does what a person would do: `kubectl apply`, `kubectl scale`, `kubectl delete pod --force`, `kubectl logs`.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.cluster.bed import programs
from tests.cluster.bed.access import Access, CommandError
from tests.cluster.bed.installation import installed, of_this_machine
from tests.cluster.bed.real_cluster import RealCluster

__all__ = ["Digits", "main"]

MANIFEST: Final = Path(__file__).parents[2] / "manifests/samples/digits.yaml"
GROUP: Final = "rpcgroup/digits"
SERVER: Final = "digits-server-0"
TARGET: Final = 0.95
TRAIN_SECONDS: Final = 120
"""The job goes on so long, also when it is good enough: the steps have to fall into its life."""
STEP_SECONDS: Final = 180.0
"""Six processes that import torch on two cores take most of it."""
END_SECONDS: Final = 300.0
POLL_SECONDS: Final = 0.5


class Digits:
    """The job in one namespace of a cluster on which the operator is installed."""

    def __init__(self, access: Access, namespace: str, say: Callable[[str], None]) -> None:
        self._access = access
        self._here = f"--namespace={namespace}"
        self._say = say

    def run(self) -> float:
        """Returns the last accuracy, in percent. Raises `TimeoutError` for a step that does not come true."""
        group = of_this_machine(MANIFEST)
        server = group["spec"]["roles"][0]["template"]["spec"]["containers"][0]
        server["args"] = ["--target", str(TARGET), "--at-least", str(TRAIN_SECONDS), "--at-most", "900"]
        self._kubectl("apply", "--server-side", "--filename=-", input=json.dumps(group))
        self._wait("three trainers are ready", lambda: self._ready() == 3, STEP_SECONDS)
        self._scale(6)
        victim, uid = next(iter(self._pods("worker").items()))
        self._say(f"kubectl delete pod {victim} --grace-period=0 --force")
        self._kubectl("delete", "pod", victim, "--grace-period=0", "--force")
        self._wait("six are ready again, without it", lambda: self._replaced(uid, 6), STEP_SECONDS)
        self._scale(2)
        self._wait("the group is Complete", lambda: self._condition("Complete"), END_SECONDS)
        accuracies = re.findall(r"accuracy ([0-9.]+)%", self._kubectl("logs", SERVER))
        return float(accuracies[-1])

    def _scale(self, replicas: int) -> None:
        self._say(f"kubectl scale {GROUP} --replicas={replicas}")
        self._kubectl("scale", GROUP, f"--replicas={replicas}")
        self._wait(f"{replicas} are ready", lambda: self._ready() == replicas, STEP_SECONDS)

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                status = json.dumps(self._group()["status"], indent=1)
                raise TimeoutError(f"after {seconds:g} s it is not true that {what}; the status:\n{status}")
            time.sleep(POLL_SECONDS)
        self._say(f"{what}; {self._last_line()}")

    def _last_line(self) -> str:
        with contextlib.suppress(CommandError):  # between two pods of that name
            return self._kubectl("logs", SERVER, "--tail=1").strip()
        return ""

    def _replaced(self, uid: str, replicas: int) -> bool:
        """Its name may be that of its successor."""
        return uid not in self._pods("worker").values() and self._ready() == replicas

    def _ready(self) -> int:
        return int(self._group().get("status", {}).get("readyReplicas", 0))

    def _condition(self, kind: str) -> bool:
        conditions = self._group().get("status", {}).get("conditions", [])
        return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)

    def _pods(self, role: str) -> dict[str, str]:
        """UIDs by name."""
        items = self._access.get(self._here, "pods", f"--selector=rpcgroup.dev/role={role}")["items"]
        return {item["metadata"]["name"]: item["metadata"]["uid"] for item in items}

    def _group(self) -> Any:
        return self._access.get(self._here, GROUP)

    def _kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self._access.kubectl(self._here, *arguments, input=input)


def main() -> None:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"== {time.monotonic() - began:5.1f} s  {text}", flush=True)

    found = programs.build()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rpcgroup-demo-")))
        cluster = stack.enter_context(RealCluster(folder, found))
        say(f"a cluster runs: export KUBECONFIG={cluster.access.kubeconfig} PATH={found}:$PATH")
        stack.enter_context(installed(cluster, found))
        say("the operator is available")
        accuracy = Digits(cluster.access, "default", say).run()
        say(f"done: accuracy {accuracy:g}%")


if __name__ == "__main__":
    main()

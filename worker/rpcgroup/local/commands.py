"""What a running driver does when a command asks: the answers of the control socket."""

from __future__ import annotations

from typing import Any

from rpcgroup.contract import DEFAULT_ROLE
from rpcgroup.control.lifecycle import WANTED
from rpcgroup.control.model import RPCGroup
from rpcgroup.errors import GroupError, ManifestError, UnknownWorkerError
from rpcgroup.local.driver import LocalDriver

__all__ = ["answer"]


def answer(driver: LocalDriver, question: dict[str, Any]) -> dict[str, Any]:
    """Raises errors of `rpcgroup.errors`, which the asker gets."""
    match question:
        case {"command": "status"}:
            return driver.snapshot()
        case {"command": "scale", "replicas": int(replicas)}:
            return scale(driver, replicas)
        case {"command": "delete-worker", "name": str(name)}:
            return delete_worker(driver, name)
    raise GroupError(f"unknown command: {question.get('command')!r}; is the driver of another version?")


def scale(driver: LocalDriver, replicas: int) -> dict[str, Any]:
    before = driver.group.spec.replicas
    set_replicas(driver, replicas, driver.group.spec.scale_strategy.workers_to_delete)
    driver.event(driver.group.metadata.name, f"scaled from {before} to {replicas}")
    return {"before": before, "replicas": replicas}


def delete_worker(driver: LocalDriver, name: str) -> dict[str, Any]:
    """One worker fewer, and it is this one."""
    elastic = [p.name for p in driver.pods.values() if p.role == DEFAULT_ROLE and p.state in WANTED]
    if name not in elastic:
        pod = driver.pods.get(name)
        if pod is not None and pod.role != DEFAULT_ROLE:
            raise UnknownWorkerError(f"{name} is of the fixed role {pod.role!r}; only elastic workers can go")
        if pod is not None:
            raise UnknownWorkerError(f"{name} is leaving already ({pod.state.value})")
        raise UnknownWorkerError(f"no worker {name!r} in this group; it has {', '.join(sorted(elastic))}")
    spec = driver.group.spec
    named = [*spec.scale_strategy.workers_to_delete, name]
    set_replicas(driver, spec.replicas - 1, list(dict.fromkeys(named)))
    driver.event(
        driver.group.metadata.name, f"scaled from {spec.replicas} to {spec.replicas - 1} without {name}"
    )
    return {"before": spec.replicas, "replicas": spec.replicas - 1}


def set_replicas(driver: LocalDriver, replicas: int, named: list[str]) -> None:
    require_room(driver.group, replicas)
    if driver.ending:
        raise GroupError(f"the group {driver.group.metadata.name} is ending and cannot be scaled")
    driver.group = driver.group.scaled(replicas, named)


def require_room(group: RPCGroup, replicas: int) -> None:
    spec = group.spec
    least, most = spec.min_replicas, spec.max_replicas
    if spec.template is None:
        raise ManifestError("the group has no spec.template, so it has no elastic workers to scale")
    if replicas < least:
        raise ManifestError(f"replicas: expected at least spec.minReplicas ({least}), got {replicas}")
    if most is not None and replicas > most:
        raise ManifestError(f"replicas: expected at most spec.maxReplicas ({most}), got {replicas}")

"""From a pod template to a command on this machine."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rpcgroup import contract
from rpcgroup.control.model import Container, PodTemplate, RPCGroup
from rpcgroup.errors import ManifestError

__all__ = ["Command", "Identity", "command_of", "require_commands"]

PYTHONS = ("python", "python3")
"""In an image these are the worker's interpreter; here that is the one that runs this."""

TUNING = (contract.ENV_LEASE_TTL, contract.ENV_STATS_INTERVAL)
"""What a person may set for all workers of a run."""

REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True)
class Identity:
    """What a worker is told about itself and where to meet."""

    namespace: str
    group: str
    name: str
    role: str
    index: int
    uid: str
    rendezvous: str
    secret_file: Path
    certificates: Mapping[str, str]
    """Variables that name their files; none where the group does without TLS."""
    compat: Mapping[str, str]
    """What a program written for torch.distributed.rpc finds; nothing where the group does not ask for it."""
    device_maps: Mapping[str, str]
    """The variable with those of its role; nothing where there are none."""

    def env(self) -> dict[str, str]:
        return {
            contract.ENV_NAMESPACE: self.namespace,
            contract.ENV_GROUP: self.group,
            contract.ENV_NAME: self.name,
            contract.ENV_ROLE: self.role,
            contract.ENV_INDEX: str(self.index),
            contract.ENV_RENDEZVOUS: self.rendezvous,
            contract.ENV_SECRET_FILE: str(self.secret_file),
            contract.ENV_HOST: "127.0.0.1",
            contract.ENV_POD_NAME: self.name,
            contract.ENV_POD_UID: self.uid,
            **self.certificates,
            **self.compat,
            **self.device_maps,
        }


@dataclass(frozen=True)
class Command:
    arguments: list[str]
    env: dict[str, str]
    cwd: str | None


def command_of(container: Container, identity: Identity, base: Mapping[str, str]) -> Command:
    """`base` is the environment of the driver, which a worker on this machine inherits, apart from what tells
    the driver itself about some other group.

    `$(NAME)` in arguments and values is replaced as Kubernetes does: by what stands before it in the
    environment; a name that is not there stays as it is, and `$$` is a dollar sign.
    """
    inherited = {k: v for k, v in base.items() if not k.startswith("RPCGROUP_") or k in TUNING}
    env = {"PYTHONUNBUFFERED": "1", contract.ENV_STATS_INTERVAL: "1"} | inherited | identity.env()
    env["PATH"] = search_path(base)
    for variable in container.env:
        if variable.value_from is None:
            env[variable.name] = expand(variable.value or "", env)
    arguments = [expand(word, env) for word in [*container.command, *container.args]]
    if arguments[0] in PYTHONS:
        arguments[0] = sys.executable
    return Command(arguments, env, container.working_dir or None)


def search_path(base: Mapping[str, str]) -> str:
    """As if the environment that `rpcgroup` is installed in were active: its programs are found first."""
    return os.pathsep.join([os.path.dirname(sys.executable), base.get("PATH", os.defpath)])


def expand(text: str, env: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else env.get(match[1], match[0])

    return REFERENCE.sub(value, text)


def require_commands(group: RPCGroup) -> None:
    """Raise `ManifestError` for what a cluster may run and this machine cannot."""
    templates: list[tuple[str, PodTemplate]] = []
    if group.spec.template is not None:
        templates.append(("spec.template", group.spec.template))
    templates += [(f"spec.roles[{n}].template", role.template) for n, role in enumerate(group.spec.roles)]
    faults = [line for path, template in templates for line in obstacles(path, template)]
    if faults:
        raise ManifestError("\n".join(faults))


def obstacles(path: str, template: PodTemplate) -> Iterator[str]:
    container = template.spec.main
    path = f"{path}.spec.containers[{template.spec.containers.index(container)}]"
    if not container.command:
        yield f"{path}.command: expected a command (on this machine no image has an entry point), got nothing"
        return
    program = container.command[0]
    found = (
        program in PYTHONS
        or "/" in program
        or "$(" in program
        or shutil.which(program, path=search_path(os.environ))
    )
    if not found:
        yield f'{path}.command[0]: expected a program on the PATH, got "{program}"'
    if container.working_dir and not os.path.isdir(container.working_dir):
        yield f'{path}.workingDir: expected a directory of this machine, got "{container.working_dir}"'
    for number, variable in enumerate(container.env):
        if variable.value_from is not None:
            yield f"{path}.env[{number}].valueFrom: expected value (this machine has no cluster to ask)"

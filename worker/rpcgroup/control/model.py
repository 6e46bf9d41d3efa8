"""The `RPCGroup` resource, typed.

Field names on paper are camelCase, as Kubernetes writes them; in Python they are snake_case. A pod template
passes through whole: it is typed only as far as a driver reads it, and all else in it is kept as it came.
Defaults, bounds and patterns stand here once; the custom resource definition is generated from this module.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from rpcgroup.contract import DEFAULT_NAMESPACE, DEFAULT_ROLE

__all__ = [
    "Container",
    "DeviceMap",
    "EnvVar",
    "Metadata",
    "PodMetadata",
    "PodSpec",
    "PodTemplate",
    "RPCGroup",
    "RPCGroupSpec",
    "Role",
    "ScaleStrategy",
    "SuccessPolicy",
    "contradictions",
]

# RFC 1123, as Kubernetes checks it: a pod's name is built from these, and etcd keys are.
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

DnsLabel = Annotated[str, Field(max_length=63, pattern=DNS_LABEL)]
Count = Annotated[int, Field(ge=0, le=100_000)]
Seconds = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Model(BaseModel):
    """Ours: an unknown field is a fault, and nothing is converted (`"3"` is no number)."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, frozen=True
    )


class Foreign(BaseModel):
    """Kubernetes' own: what is not named here passes through."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="allow", strict=True, frozen=True
    )


class EnvVar(Foreign):
    name: Annotated[str, Field(min_length=1)]
    value: str | None = None
    value_from: dict[str, Any] | None = None


class Container(Foreign):
    name: str = ""
    image: str = ""
    command: list[str] = []
    args: list[str] = []
    env: list[EnvVar] = []
    working_dir: str = ""


class PodSpec(Foreign):
    containers: Annotated[list[Container], Field(min_length=1)]
    termination_grace_period_seconds: Seconds = 30

    @property
    def main(self) -> Container:
        """The container that is the worker: the one named `main`, else the first."""
        return next((c for c in self.containers if c.name == "main"), self.containers[0])


class PodMetadata(Foreign):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class PodTemplate(Foreign):
    metadata: PodMetadata = PodMetadata()
    spec: PodSpec


class Role(Model):
    """Fixed workers beside the elastic ones."""

    name: DnsLabel
    replicas: Count = 1
    template: PodTemplate


class DeviceMap(Model):
    """Devices of each worker of one role as the workers of another see them, by torch's names."""

    from_: Annotated[str, Field(alias="from")]
    to: str
    devices: dict[str, str]


class ScaleStrategy(Model):
    workers_to_delete: list[str] = []
    """Pods that leave first when `replicas` goes down."""


class SuccessPolicy(Model):
    role: str
    """The group is complete when all pods of this role have succeeded."""


class RPCGroupSpec(Model):
    replicas: Count = 1
    min_replicas: Count = 0
    max_replicas: Count | None = None
    template: PodTemplate | None = None
    roles: list[Role] = []
    device_maps: list[DeviceMap] = []
    scale_strategy: ScaleStrategy = ScaleStrategy()
    backoff_limit: Count = 6
    """Failures in a row of one pod that are answered with a restart; one more fails the group."""
    success_policy: SuccessPolicy | None = None
    ttl_seconds_after_finished: Seconds | None = None
    suspend: bool = False


class Metadata(Model):
    name: DnsLabel
    namespace: DnsLabel = DEFAULT_NAMESPACE
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class RPCGroup(Model):
    api_version: Literal["rpcgroup.dev/v1alpha1"]
    kind: Literal["RPCGroup"]
    metadata: Metadata
    spec: RPCGroupSpec

    def roles(self) -> dict[str, tuple[int, PodTemplate]]:
        """Every role's wanted number of pods and their template, the elastic role first."""
        roles = {r.name: (r.replicas, r.template) for r in self.spec.roles}
        if self.spec.template is not None:
            roles = {DEFAULT_ROLE: (self.spec.replicas, self.spec.template), **roles}
        return roles

    def scaled(self, replicas: int, workers_to_delete: list[str]) -> RPCGroup:
        """This group with another number of elastic workers, and who leaves first."""
        strategy = ScaleStrategy(workers_to_delete=workers_to_delete)
        spec = self.spec.model_copy(update={"replicas": replicas, "scale_strategy": strategy})
        return self.model_copy(update={"spec": spec})

    def suspended(self) -> RPCGroup:
        return self.model_copy(update={"spec": self.spec.model_copy(update={"suspend": True})})


def contradictions(group: RPCGroup) -> list[str]:
    """What no single field shows: one line `path: expected ..., got ...` for each fault."""
    spec = group.spec
    faults = []
    if spec.min_replicas > spec.replicas:
        faults.append(
            f"spec.minReplicas: expected at most spec.replicas ({spec.replicas}), got {spec.min_replicas}"
        )
    if spec.max_replicas is not None and spec.replicas > spec.max_replicas:
        faults.append(
            f"spec.replicas: expected at most spec.maxReplicas ({spec.max_replicas}), got {spec.replicas}"
        )
    if spec.template is None and spec.replicas > 0:
        faults.append(
            f"spec.template: expected a pod template for spec.replicas ({spec.replicas}), got nothing"
        )
    known = [DEFAULT_ROLE]
    for number, role in enumerate(spec.roles):
        path = f"spec.roles[{number}].name"
        if role.name == DEFAULT_ROLE:
            faults.append(f'{path}: expected another name than that of the elastic role, got "{role.name}"')
        elif role.name in known:
            faults.append(f'{path}: expected a name that no other role has, got "{role.name}" again')
        known.append(role.name)
    roles = " or ".join(f'"{name}"' for name in dict.fromkeys(known))
    if spec.success_policy is not None and spec.success_policy.role not in known:
        faults.append(f'spec.successPolicy.role: expected {roles}, got "{spec.success_policy.role}"')
    for number, devices in enumerate(spec.device_maps):
        for end, name in (("from", devices.from_), ("to", devices.to)):
            if name not in known:
                faults.append(f'spec.deviceMaps[{number}].{end}: expected {roles}, got "{name}"')
    return faults

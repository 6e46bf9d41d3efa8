"""The `RPCGroup` resource, typed.

Field names on paper are camelCase, as Kubernetes writes them; in Python they are snake_case. A pod template
passes through whole: it is typed only as far as a driver reads it, and all else in it is kept as it came.
Defaults, bounds, patterns and what `kubectl explain` says of a field stand here once; the custom resource
definition is generated from this module and from `rules`, which has what no single field shows.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from rpcgroup.contract import DEFAULT_NAMESPACE, DEFAULT_ROLE

__all__ = [
    "DEVICE",
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
    "RollingUpdate",
    "RolloutStrategy",
    "ScaleStrategy",
    "Security",
    "SuccessPolicy",
]

# RFC 1123, as Kubernetes checks it: a pod's name is built from these, and etcd keys are.
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
# As a Job's managedBy: a DNS subdomain, a slash, a path of RFC 3986.
CONTROLLER = (
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[-A-Za-z0-9/_.~%!$&'()*+,;=:]+$"
)
PERCENTAGE = r"^(100|[1-9]?[0-9])%$"
MOST = 100_000
"""Of anything that is counted. An API server reckons what a rule may cost from bounds as this."""


def number_or_percentage(value: Any) -> int | str:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST
    if whole or (isinstance(value, str) and re.fullmatch(PERCENTAGE, value)):
        return value  # type: ignore[no-any-return]
    raise PydanticCustomError("number_or_percentage", 'a whole number or a percentage up to "100%"')


def keyed(*keys: str) -> Any:
    """Of a list: no two entries have the same values of these fields, written as on paper."""
    return Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [*keys]})


DEVICE = r"^(cpu|[a-z]+:[0-9]+)$"
"""As torch writes them; devices without a number mean another one to each thread."""
DnsLabel = Annotated[str, Field(max_length=63, pattern=DNS_LABEL)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seconds = Annotated[int, Field(ge=0, le=2**31 - 1)]
IntOrPercentage = Annotated[
    int | str,
    PlainValidator(number_or_percentage),
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "minimum": 0, "maximum": MOST, "pattern": PERCENTAGE}
    ),
]


class Model(BaseModel):
    """Ours: an unknown field is a fault, and nothing is converted (`"3"` is no number)."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
    )


class Foreign(BaseModel):
    """Kubernetes' own: what is not named here passes through."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="allow",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
    )


class EnvVar(Foreign):
    name: Annotated[str, Field(min_length=1)]
    """Name of the variable."""
    value: str | None = None
    """Its value. $(NAME) is replaced by the value of a variable that stands before it."""
    value_from: dict[str, Any] | None = None
    """Where the value comes from instead, as in a Pod."""


class Container(Foreign):
    name: DnsLabel
    """Name of the container, a DNS label. The container named main is the worker, else the first one."""
    image: str = ""
    """Container image."""
    command: list[str] = []
    """The program and its first arguments, in place of the image's entry point."""
    args: list[str] = []
    """Arguments that follow the command."""
    env: list[EnvVar] = []
    """Environment variables. Those that tell the worker who it is and where its group meets are added."""
    working_dir: str = ""
    """Working directory, in place of the image's."""


class PodSpec(Foreign):
    containers: Annotated[list[Container], Field(min_length=1), keyed("name")]
    """The worker's container, and others beside it."""
    restart_policy: Annotated[str, Field(max_length=32)] = "Never"
    """Never or OnFailure. Not Always: a worker that has been drained must not be brought back. Defaults to Never."""
    termination_grace_period_seconds: Seconds = 30
    """Seconds that a worker gets to drain, that is to finish or hand over what it holds. Defaults to 30."""

    @property
    def main(self) -> Container:
        """The container that is the worker: the one named `main`, else the first."""
        return next((c for c in self.containers if c.name == "main"), self.containers[0])


class PodMetadata(Foreign):
    labels: dict[str, str] = {}
    """Labels of the pods, beside those of the group."""
    annotations: dict[str, str] = {}
    """Annotations of the pods."""


class PodTemplate(Foreign):
    metadata: PodMetadata = PodMetadata()
    """Labels and annotations of the pods."""
    spec: PodSpec
    """A pod's spec. It passes through whole: all that a Pod knows may stand here."""


class Role(Model):
    """Fixed workers beside the elastic ones."""

    name: DnsLabel
    """Name of the role, a DNS label. Its pods are named GROUP-ROLE-INDEX. The name worker is that of the elastic
    role."""
    replicas: Count = 1
    """Number of workers in the role. Defaults to 1."""
    template: PodTemplate
    """The pods of the role."""


class DeviceMap(Model):
    """Devices of each worker of one role as the workers of another see them, by torch's names."""

    from_: Annotated[DnsLabel, Field(alias="from")]
    """The role whose workers call."""
    to: DnsLabel
    """The role whose workers are called."""
    devices: Annotated[dict[str, Annotated[str, Field(max_length=31, pattern=DEVICE)]], Field(max_length=32)]
    """The caller's device -> the callee's, by torch's names, as in cuda:0: cuda:1."""


class ScaleStrategy(Model):
    workers_to_delete: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=10_000)] = []
    """Names of the pods that leave first when replicas goes down. Names of pods that are gone do no harm."""


class SuccessPolicy(Model):
    role: DnsLabel
    """The group is complete when all pods of this role have succeeded; the rest are drained."""


class RollingUpdate(Model):
    max_unavailable: IntOrPercentage = 1
    """How many pods of a role may be missing during a rollout: a number, or a percentage of the role's replicas,
    rounded down. Defaults to 1."""
    max_surge: IntOrPercentage = 0
    """How many pods of a role may be there beyond its replicas during a rollout: a number, or a percentage of
    the role's replicas, rounded up. Defaults to 0. Not 0 together with maxUnavailable."""


class RolloutStrategy(Model):
    rolling_update: RollingUpdate = RollingUpdate()
    """Pods are replaced a few at a time; each is drained before it is deleted."""


class Security(Model):
    tls: bool = False
    """Whether the workers talk TLS to one another, with a certificate authority of the group's own. It makes the
    certificates and renews them while the workers run. Defaults to false."""


class RPCGroupSpec(Model):
    """What is wanted of a group."""

    replicas: Count = 1
    """Number of elastic workers. The scale subresource writes here. Defaults to 1."""
    min_replicas: Count = 0
    """Number of elastic workers, at most replicas, below which the group is not Available. It lives on with fewer,
    and voluntary disruptions leave as many. Defaults to 0."""
    max_replicas: Count | None = None
    """Upper bound of replicas, whoever sets it. No bound when it is not given."""
    template: PodTemplate | None = None
    """The pods of the elastic workers, whose role is named worker. Needed unless replicas is 0."""
    roles: Annotated[list[Role], Field(max_length=64), keyed("name")] = []
    """Fixed workers beside the elastic ones, as a parameter server. At most 64."""
    device_maps: Annotated[list[DeviceMap], Field(max_length=256), keyed("from", "to")] = []
    """How the devices of the workers of one role stand to those of another; a worker's program may say otherwise of
    a worker that it calls, device by device. A worker reads this when it starts, so it can be changed only while the
    group is suspended. At most 256."""
    compat: Literal["None", "Torch"] = "None"
    """Torch: a program written for torch.distributed.rpc runs as it is, on rpcgroup in the place of that module, in
    all Python processes of the worker's container; RANK and WORLD_SIZE are set as torchrun sets them, for roles in
    their order. Needs rpcgroup in the image. A worker reads this when it starts, so it can be changed only while the
    group is suspended. Defaults to None."""
    security: Security = Security()
    """What protects the workers beside the group's secret. A worker reads this when it starts, so it can be changed
    only while the group is suspended."""
    scale_strategy: ScaleStrategy = ScaleStrategy()
    """Who leaves when replicas goes down."""
    rollout_strategy: RolloutStrategy = RolloutStrategy()
    """How pods are replaced when the template of their role has changed."""
    backoff_limit: Count = 6
    """Failures in a row of one pod that are answered with a restart; one more fails the group. Defaults to 6."""
    success_policy: SuccessPolicy | None = None
    """When the group is complete. When it is not given: when all pods have succeeded."""
    ttl_seconds_after_finished: Seconds | None = None
    """Seconds after which a group that is Complete or Failed is deleted with all that is its own. When it is not
    given, it stays."""
    suspend: bool = False
    """While true, no pod runs: all workers are drained and their pods deleted. Defaults to false."""
    managed_by: Annotated[str, Field(max_length=63, pattern=CONTROLLER)] | None = None
    """The controller that looks after the group in place of the operator, as in kueue.x-k8s.io/multikueue.
    Immutable."""


class Metadata(Model):
    name: DnsLabel
    namespace: DnsLabel = DEFAULT_NAMESPACE
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class RPCGroup(Model):
    """A group of workers that call one another with rpcgroup, torch.distributed.rpc made elastic: workers join,
    leave and die while the others work on."""

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

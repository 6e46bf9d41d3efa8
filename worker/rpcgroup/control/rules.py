"""What no single field of an `RPCGroup` shows.

Each rule stands here twice, side by side: in Python, for a manifest on its way to a local group, and in CEL, for
the API server. The manifests under `tests/cluster/invalid` are held against both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from rpcgroup.contract import DEFAULT_ROLE
from rpcgroup.control.model import DEVICE, DeviceMap, PodSpec, Role, RollingUpdate, RPCGroup, RPCGroupSpec

__all__ = ["RULES", "Rule", "contradictions"]


def contradictions(group: RPCGroup) -> list[str]:
    """One line `path: expected ..., got ...` for each breach of a rule."""
    return [fault for path, part in parts("", group) for fault in faults(path, part)]


@dataclass(frozen=True)
class Rule:
    """`expected` says what stands in `field`, a path below the model `of`, where the rule is kept.

    `found` gives what stands there instead, in Python; nothing where the rule is kept. In CEL, `kept` is whether
    it is, and `got` is a text for what stands there if not, with expressions between braces.
    """

    of: type[BaseModel]
    field: str
    expected: str
    found: Callable[[Any], Iterable[object]]
    kept: str
    got: str


def parts(path: str, value: object) -> Iterator[tuple[str, object]]:
    """`value` and all that it is made of, each with its path as it is written in a manifest."""
    yield path, value
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from parts(f"{path}.{field.alias}".removeprefix("."), getattr(value, name))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from parts(f"{path}[{number}]", entry)


def faults(path: str, part: object) -> Iterator[str]:
    for rule in RULES:
        if isinstance(part, rule.of):
            where = f"{path}.{rule.field}".removeprefix(".")
            yield from (f"{where}: expected {rule.expected}, got {shown(v)}" for v in rule.found(part))
    if isinstance(part, BaseModel):
        yield from repetitions(path, part)


def repetitions(path: str, model: BaseModel) -> Iterator[str]:
    """Entries of a list that are named as an earlier one is. An API server knows such a list as one of type map."""
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        keys = extra.get("x-kubernetes-list-map-keys")
        if not isinstance(keys, list):
            continue
        earlier = []
        for number, entry in enumerate(getattr(model, name)):
            written = entry.model_dump(by_alias=True)
            value = [written[str(key)] for key in keys]
            if value in earlier:
                where = f"{path}.{field.alias}[{number}]"
                names = " and ".join(map(str, keys))
                got = " and ".join(map(shown, value))
                yield f"{where}: expected another {names} than any entry before it has, got {got} again"
            earlier.append(value)


def shown(value: object) -> str:
    if value is None:
        return "nothing"
    return f'"{value}"' if isinstance(value, str) else str(value)


def role_names(spec: RPCGroupSpec) -> list[str]:
    return [DEFAULT_ROLE, *(role.name for role in spec.roles)]


def name_with_too_long_roles(group: RPCGroup) -> Iterator[str]:
    if len(group.metadata.name) + max(map(len, role_names(group.spec))) > LONGEST_NAMES:
        yield group.metadata.name


def unknown_deciding_role(spec: RPCGroupSpec) -> Iterator[str]:
    if spec.success_policy is not None and spec.success_policy.role not in role_names(spec):
        yield spec.success_policy.role


def unknown_callers(spec: RPCGroupSpec) -> Iterator[str]:
    yield from (m.from_ for m in spec.device_maps if m.from_ not in role_names(spec))


def unknown_callees(spec: RPCGroupSpec) -> Iterator[str]:
    yield from (m.to for m in spec.device_maps if m.to not in role_names(spec))


def devices_that_stand_for_two(device_map: DeviceMap) -> Iterator[str]:
    if len(set(device_map.devices.values())) < len(device_map.devices):
        yield "one that does"


def replicas_over_limit(spec: RPCGroupSpec) -> Iterator[int]:
    if spec.max_replicas is not None and spec.replicas > spec.max_replicas:
        yield spec.replicas


def standstill(update: RollingUpdate) -> Iterator[int | str]:
    if update.max_unavailable in NONE and update.max_surge in NONE:
        yield update.max_unavailable


def unseen(_: object) -> Iterable[object]:
    """Of a rule on changes: one manifest does not show what was there before."""
    return ()


def is_role(name: str) -> str:
    """CEL, below the spec. An API server can reckon what a search costs; what it costs to join lists it cannot."""
    return f"({name} == '{DEFAULT_ROLE}' || has(self.roles) && self.roles.exists(r, r.name == {name}))"


NONE: Final = (0, "0%")
MAY_END: Final = ("Never", "OnFailure")
LONGEST_NAMES: Final = 56
"""Characters of a group's and a role's name together. A pod's name is `GROUP-ROLE-INDEX`; a host's has up to 63."""

A_ROLE: Final = f'"{DEFAULT_ROLE}" or the name of one of spec.roles'
RULES: Final[Sequence[Rule]] = (
    Rule(
        of=RPCGroup,
        field="metadata.name",
        expected=f"at most {LONGEST_NAMES} characters together with the longest name of a role",
        found=name_with_too_long_roles,
        kept=f"size(self.metadata.name) + {len(DEFAULT_ROLE)} <= {LONGEST_NAMES} && (!has(self.spec.roles)"
        f" || self.spec.roles.all(r, size(self.metadata.name) + size(r.name) <= {LONGEST_NAMES}))",
        got='"{self.metadata.name}"',
    ),
    Rule(
        of=RPCGroupSpec,
        field="minReplicas",
        expected="at most spec.replicas",
        found=lambda spec: [spec.min_replicas] if spec.min_replicas > spec.replicas else [],
        kept="self.minReplicas <= self.replicas",
        got="{self.minReplicas}",
    ),
    Rule(
        of=RPCGroupSpec,
        field="replicas",
        expected="at most spec.maxReplicas",
        found=replicas_over_limit,
        kept="!has(self.maxReplicas) || self.replicas <= self.maxReplicas",
        got="{self.replicas}",
    ),
    Rule(
        of=RPCGroupSpec,
        field="template",
        expected="a pod template unless spec.replicas is 0",
        found=lambda spec: [None] if spec.template is None and spec.replicas > 0 else [],
        kept="has(self.template) || self.replicas == 0",
        got="nothing",
    ),
    Rule(
        of=Role,
        field="name",
        expected="another name than that of the elastic role",
        found=lambda role: [role.name] if role.name == DEFAULT_ROLE else [],
        kept=f"self.name != '{DEFAULT_ROLE}'",
        got='"{self.name}"',
    ),
    Rule(
        of=RPCGroupSpec,
        field="successPolicy.role",
        expected=A_ROLE,
        found=unknown_deciding_role,
        kept=f"!has(self.successPolicy) || {is_role('self.successPolicy.role')}",
        got='"{self.successPolicy.role}"',
    ),
    Rule(
        of=RPCGroupSpec,
        field="deviceMaps",
        expected=f"each from to be {A_ROLE}",
        found=unknown_callers,
        kept=f"!has(self.deviceMaps) || self.deviceMaps.all(m, {is_role('m.from')})",
        got=f'"{{self.deviceMaps.filter(m, !{is_role("m.from")})[0].from}}"',
    ),
    Rule(
        of=RPCGroupSpec,
        field="deviceMaps",
        expected=f"each to to be {A_ROLE}",
        found=unknown_callees,
        kept=f"!has(self.deviceMaps) || self.deviceMaps.all(m, {is_role('m.to')})",
        got=f'"{{self.deviceMaps.filter(m, !{is_role("m.to")})[0].to}}"',
    ),
    Rule(
        of=DeviceMap,
        field="devices",
        expected="cpu or a device with its number, as in cuda:0, on both sides",
        found=lambda device_map: (name for name in device_map.devices if not re.fullmatch(DEVICE, name)),
        kept=f"self.devices.all(d, d.matches('{DEVICE}'))",
        got=f"\"{{self.devices.map(d, d).filter(d, !d.matches('{DEVICE}'))[0]}}\"",
    ),
    Rule(
        of=DeviceMap,
        field="devices",
        expected="no device to stand for two",
        found=devices_that_stand_for_two,
        kept="self.devices.all(d, !self.devices.exists(e, e != d && self.devices[e] == self.devices[d]))",
        got="one that does",
    ),
    Rule(
        of=RPCGroupSpec,
        field="deviceMaps",
        expected="no change while the group is not suspended",
        found=unseen,
        kept="oldSelf.suspend || (has(self.deviceMaps) ? has(oldSelf.deviceMaps)"
        " && self.deviceMaps == oldSelf.deviceMaps : !has(oldSelf.deviceMaps))",
        got="other ones",
    ),
    Rule(
        of=RPCGroupSpec,
        field="compat",
        expected="no change while the group is not suspended",
        found=unseen,
        kept="oldSelf.suspend || self.compat == oldSelf.compat",
        got="{self.compat}",
    ),
    Rule(
        of=RPCGroupSpec,
        field="security",
        expected="no change while the group is not suspended",
        found=unseen,
        kept="oldSelf.suspend || self.security == oldSelf.security",
        got="another one",
    ),
    Rule(
        of=RPCGroupSpec,
        field="managedBy",
        expected="no change, as it is immutable",
        found=unseen,
        kept="has(self.managedBy) ? has(oldSelf.managedBy) && self.managedBy == oldSelf.managedBy"
        " : !has(oldSelf.managedBy)",
        got="{has(self.managedBy) ? self.managedBy : 'nothing'}",
    ),
    Rule(
        of=RollingUpdate,
        field="maxUnavailable",
        expected="more than 0, as maxSurge is 0",
        found=standstill,
        kept="!(self.maxUnavailable == 0 || self.maxUnavailable == '0%')"
        " || !(self.maxSurge == 0 || self.maxSurge == '0%')",
        got="{self.maxUnavailable}",
    ),
    Rule(
        of=PodSpec,
        field="restartPolicy",
        expected="Never or OnFailure, as a drained worker must not be brought back",
        found=lambda spec: [spec.restart_policy] if spec.restart_policy not in MAY_END else [],
        kept=f"!has(self.restartPolicy) || self.restartPolicy in {list(MAY_END)}",
        got='"{self.restartPolicy}"',
    ),
)

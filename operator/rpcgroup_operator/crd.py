"""The custom resource definition, made from the model. `python -m rpcgroup_operator.crd` prints it.

What is wanted is read from `rpcgroup.control.model` and `rpcgroup.control.rules`; the status has its shape here,
as only a cluster has it whole. An API server takes structural schemas: no references, no alternatives, and bounds
wherever a rule looks, for it reckons the cost of a rule before it takes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Field

from rpcgroup.contract import API_VERSION, DOMAIN, KIND, PLURAL
from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.model import Metadata, Model, RPCGroup, RPCGroupSpec, keyed
from rpcgroup.control.rules import RULES, Rule

__all__ = ["custom_resource_definition", "manifest"]

Schema = dict[str, Any]


class Condition(Model):
    """As Kubernetes' own."""

    type: Annotated[str, Field(max_length=316)]
    """Available, Progressing, Degraded, Suspended; at the end Complete or Failed."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    observed_generation: int | None = None
    """The metadata.generation that the condition speaks of."""
    last_transition_time: datetime
    """When the status of the condition changed last."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, in one CamelCase word."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, for people."""


class Member(Model):
    """One pod and its worker."""

    name: str
    """Name of the pod and of its worker."""
    role: str | None = None
    """The role of the worker."""
    state: Annotated[str, Field(description=f"One of {', '.join(s.value for s in PodState)}.")]
    failures: int | None = None
    """Failures in a row."""
    incarnation: int | None = None
    """Grows with each start of the worker under this name; 0 while it is no member of the group."""


class Status(Model):
    """What is there. Written by the operator alone."""

    observed_generation: int | None = None
    """The metadata.generation that the operator has seen."""
    replicas: int | None = None
    """Number of elastic workers that are there and neither leave nor have ended."""
    ready_replicas: int | None = None
    """Number of elastic workers that have joined the group and take calls."""
    updated_replicas: int | None = None
    """Number of elastic workers made from the present template."""
    selector: str | None = None
    """Label selector of the elastic workers' pods, for the scale subresource."""
    conditions: Annotated[list[Condition] | None, keyed("type")] = None
    """Whether the group serves, moves, has failures, is suspended, has ended; and why."""
    members: Annotated[list[Member] | None, keyed("name")] = None
    """The pods of the group. In a large group those that are ready may be left out."""


def column(name: str, type: str, path: str, description: str, priority: int = 0) -> Schema:
    """`priority` 1: shown with `-o wide` only."""
    shown = {"name": name, "type": type, "jsonPath": path, "description": description}
    return {**shown, "priority": priority}


COLUMNS: Final = [
    column("Desired", "integer", ".spec.replicas", "Elastic workers that are wanted."),
    column("Ready", "integer", ".status.readyReplicas", "Elastic workers that take calls."),
    column("Updated", "integer", ".status.updatedReplicas", "Elastic workers of the present template.", 1),
    column(
        "Available", "string", '.status.conditions[?(@.type=="Available")].status', "Whether enough serve."
    ),
    column("Status", "string", '.status.conditions[?(@.type=="Progressing")].reason', "What goes on."),
    column("Age", "date", ".metadata.creationTimestamp", "Since when the group is there."),
]


def custom_resource_definition() -> Schema:
    version = {
        "name": API_VERSION.rpartition("/")[2],
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": resource()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": COLUMNS,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{DOMAIN}"},
        "spec": {
            "group": DOMAIN,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["rpcg"],
                "categories": ["all"],
            },
            "versions": [version],
        },
    }


class WithoutReferences(yaml.SafeDumper):
    """What is the same object here is written out wherever it stands."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def manifest() -> str:
    """The definition as YAML."""
    origin = "# Made by `make crd` from worker/rpcgroup/control/{model,rules}.py; not to be edited.\n"
    body = yaml.dump(custom_resource_definition(), Dumper=WithoutReferences, sort_keys=False, width=110)
    return origin + body


def resource() -> Schema:
    """Of metadata an API server lets a definition bound the name, and nothing else."""
    name = Metadata.model_json_schema()["properties"]["name"]
    return {
        "description": prose(RPCGroup.__doc__ or ""),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "metadata": {"type": "object", "properties": {"name": structural(name, {})}},
            "spec": structural(RPCGroupSpec.model_json_schema(), {}),
            "status": structural(Status.model_json_schema(), {}),
        },
        **validations(RPCGroup.__name__),
    }


COPIED: Final = frozenset(
    {
        "default",
        "enum",
        "format",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "required",
        "type",
    }
)
"""Keywords of pydantic's JSON schema that mean the same in a structural one; those of Kubernetes are, too."""


def structural(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A node of the JSON schema that pydantic makes of a model, as an API server takes it."""
    definitions = node.get("$defs", definitions)
    node = resolved(node, definitions)
    schema: Schema = {}
    if "description" in node:
        schema["description"] = prose(node["description"])
    schema |= {key: value for key, value in node.items() if key in COPIED or key.startswith("x-kubernetes-")}
    if "items" in node:
        schema["items"] = structural(node["items"], definitions)
    if "properties" in node:
        schema["properties"] = {k: structural(v, definitions) for k, v in node["properties"].items()}
        schema |= validations(node["title"])
    others = node.get("additionalProperties", False)
    if isinstance(others, dict):
        schema["additionalProperties"] = structural(others, definitions)
    elif others:  # Kubernetes' own, which comes back as it was written
        schema["x-kubernetes-preserve-unknown-fields"] = True
        for field in schema.get("properties", {}).values():
            field.pop("default", None)
    set_default(schema)
    return schema


def resolved(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Without a reference, and without the null of a field that need not be given."""
    if "anyOf" in node:
        (given,) = (choice for choice in node["anyOf"] if choice.get("type") != "null")
    elif "$ref" in node:
        given = definitions[node["$ref"].rpartition("/")[2]]
    else:
        return node
    # What a field says of itself goes before what its type says, apart from the type's name.
    kept = {key: value for key, value in node.items() if key not in ("anyOf", "$ref", "title")}
    return resolved({**given, **kept}, definitions)


def set_default(schema: Schema) -> None:
    """Nothing and empty need no default. An object's is written out: rules are held against it as it stands."""
    if isinstance(schema.get("default"), dict):
        fields = schema.get("properties", {}).items()
        schema["default"] = {name: field["default"] for name, field in fields if "default" in field}
    if schema.get("default") in (None, "", [], {}):
        schema.pop("default", None)


EXPRESSION: Final = re.compile(r"\{(.*?)\}")


def validations(model: str) -> Schema:
    rules = [validation(rule) for rule in RULES if rule.of.__name__ == model]
    return {"x-kubernetes-validations": rules} if rules else {}


def validation(rule: Rule) -> Schema:
    schema = {
        "rule": rule.kept,
        "fieldPath": f".{rule.field}",
        "message": f"expected {rule.expected}, got {EXPRESSION.sub('...', rule.got)}",
    }
    if expressions := EXPRESSION.findall(rule.got):
        text = json.dumps(f"expected {rule.expected}, got {EXPRESSION.sub('%s', rule.got)}")
        schema["messageExpression"] = f"{text}.format([{', '.join(expressions)}])"
    return schema


def prose(text: str) -> str:
    """On one line: it is wrapped where it is shown."""
    return " ".join(text.split())


if __name__ == "__main__":
    print(manifest(), end="")

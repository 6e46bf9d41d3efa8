"""What can be seen without an API server; `tests/cluster/test_crd.py` asks one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.manifest import parse_manifest
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.rules import RULES
from rpcgroup.control.status import Condition, GroupStatus, MemberStatus
from rpcgroup.errors import ManifestError
from rpcgroup_operator.crd import custom_resource_definition, manifest
from rpcgroup_operator.status import status_to

ROOT = Path(__file__).parents[2]
INVALID = sorted((ROOT / "tests/cluster/invalid").glob("*.yaml"))
SINGLE = [path for path in INVALID if len(path.read_text().split("\n---\n")) == 1]
SCHEMA = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]


def nodes(path: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema with the path of what it describes."""
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from nodes(f"{path}.{name}", field)
    if "items" in node:
        yield from nodes(f"{path}[]", node["items"])
    if "additionalProperties" in node:
        yield from nodes(f"{path}.*", node["additionalProperties"])


def test_the_file_is_what_the_model_says() -> None:
    assert (ROOT / "manifests/crd.yaml").read_text() == manifest(), "if the change is meant: make crd"


def test_what_is_installed_without_helm_has_the_same_definition() -> None:
    """All of it is compared where helm is: `tests/cluster/test_chart.py`."""
    documents = yaml.safe_load_all((ROOT / "manifests/install.yaml").read_text())
    (installed,) = [document for document in documents if document["kind"] == "CustomResourceDefinition"]
    assert installed["spec"] == yaml.safe_load(manifest())["spec"], "make install-manifest"


def test_every_node_is_structural() -> None:
    """As an API server demands: one type, or a number or text; nothing that refers or chooses."""
    for path, node in nodes("", SCHEMA):
        assert ("type" in node) != node.get("x-kubernetes-int-or-string", False), path
        assert not {"$ref", "$defs", "anyOf", "allOf", "oneOf", "not", "nullable", "title"} & set(node), path
        assert isinstance(node.get("additionalProperties", {}), dict), path


def test_every_field_has_a_description() -> None:
    fields = (f for root in ("spec", "status") for f in nodes(root, SCHEMA["properties"][root]))
    assert [path for path, node in fields if "description" not in node and path[-1] not in "]*"] == []


def test_defaults_of_the_schema_are_those_of_the_model() -> None:
    group = RPCGroup.model_validate(
        {"apiVersion": "rpcgroup.dev/v1alpha1", "kind": "RPCGroup", "metadata": {"name": "g"}, "spec": {}}
    )
    ours = group.spec.model_dump(by_alias=True)
    theirs = defaulted({}, SPEC)
    assert {key: ours[key] for key in theirs} == theirs
    assert set(theirs) == {
        "replicas",
        "minReplicas",
        "backoffLimit",
        "compat",
        "suspend",
        "rolloutStrategy",
        "security",
    }


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """What an API server makes of an object."""
    for name, field in schema.get("properties", {}).items():
        if name not in value and "default" in field:
            value[name] = field["default"]
        if isinstance(value.get(name), dict):
            value[name] = defaulted(dict(value[name]), field)
    return value


def test_a_template_comes_back_as_it_was_written() -> None:
    template = SPEC["properties"]["template"]
    assert [path for path, node in nodes("template", template) if "default" in node] == []
    kubernetes_own = ["spec", "metadata"]
    assert all(template["properties"][k]["x-kubernetes-preserve-unknown-fields"] for k in kubernetes_own)


def test_every_rule_stands_wherever_its_model_does() -> None:
    templates = [SPEC["properties"]["template"]]
    templates.append(SPEC["properties"]["roles"]["items"]["properties"]["template"])
    for template in templates:
        (rule,) = template["properties"]["spec"]["x-kubernetes-validations"]
        assert rule["fieldPath"] == ".restartPolicy"
    written = {
        rule["rule"] for _, node in nodes("", SCHEMA) for rule in node.get("x-kubernetes-validations", [])
    }
    assert written == {rule.kept for rule in RULES}


def test_a_status_as_the_operator_writes_it_has_its_shape_here() -> None:
    """An API server drops what a definition does not name, without a word."""
    status = GroupStatus(
        replicas=1,
        ready_replicas=1,
        conditions=(Condition("Available", True, "AllReady", "every wanted pod is ready", 0.0),),
        members=(MemberStatus("g-worker-0", "worker", PodState.READY, 0, 7),),
    )
    assert unnamed("status", status_to(status, 1, "a=b", 1), SCHEMA["properties"]["status"]) == []


def unnamed(path: str, value: Any, schema: dict[str, Any]) -> list[str]:
    if isinstance(value, list):
        return [line for entry in value for line in unnamed(f"{path}[]", entry, schema["items"])]
    if not isinstance(value, dict):
        return []
    fields = schema.get("properties", {})
    lines = [f"{path}.{name}" for name in value if name not in fields]
    return lines + [
        line
        for name in value
        if name in fields
        for line in unnamed(f"{path}.{name}", value[name], fields[name])
    ]


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_what_an_api_server_refuses_is_refused_here(path: Path) -> None:
    first, *_ = path.read_text().splitlines()
    field = first.removeprefix("# field: ")
    with pytest.raises(ManifestError) as caught:
        parse_manifest(path.read_text())
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [field]


CHANGES = [path for path in INVALID if path not in SINGLE]


@pytest.mark.parametrize("path", CHANGES, ids=lambda path: path.stem)
def test_a_forbidden_change_begins_at_a_valid_group(path: Path) -> None:
    before, _ = yaml.safe_load_all(path.read_text())
    parse_manifest(yaml.safe_dump(before))

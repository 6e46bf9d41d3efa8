"""What can be seen of the chart without helm; `tests/cluster/test_chart.py` renders and installs it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from rpcgroup import contract

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts/rpcgroup"
OF_HELM: Final = {"global"}
"""Helm adds it to the values of every chart."""


def test_the_definition_is_the_projects() -> None:
    ours, charts = ROOT / "manifests/crd.yaml", CHART / "files/crd.yaml"
    assert charts.read_text() == ours.read_text(), "make crd"
    assert ours.read_text().count("\nmetadata:\n") == 1, "where the chart's template adds its labels"


def test_the_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == importlib.metadata.version("rpcgroup")


def test_the_schema_names_what_the_values_name() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(paths(values, schema)) == set(fields(schema)) - OF_HELM


def paths(value: dict[str, Any], schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Of the values, down to where the schema leaves the rest to Kubernetes."""
    for name, entry in value.items():
        inner = schema.get("properties", {}).get(name, {})
        if "properties" in inner:
            yield from paths(entry, inner, f"{at}{name}.")
        else:
            yield f"{at}{name}"


def fields(schema: dict[str, Any], at: str = "") -> Iterator[str]:
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            assert inner["additionalProperties"] is False, f"a misspelt value of {at}{name} would be taken"
            yield from fields(inner, f"{at}{name}.")
        else:
            yield f"{at}{name}"


def test_the_names_are_those_of_the_contract() -> None:
    """A template is text: nobody else notices a name that has changed."""
    text = "\n".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    variables = set(re.findall(r"RPCGROUP_ETCD_\w+", text))
    assert variables <= {value for name, value in vars(contract).items() if name.startswith("ENV_")}
    assert contract.LABEL_GROUP in text


def test_the_operators_right_to_a_lease_is_to_the_one_that_it_is_told() -> None:
    documents = list(yaml.safe_load_all((ROOT / "manifests/install.yaml").read_text()))
    deployments = [d for d in documents if d["kind"] == "Deployment"]
    (container,) = deployments[0]["spec"]["template"]["spec"]["containers"]
    (lease,) = (a.partition("=")[2] for a in container["args"] if a.startswith("--lease-name="))
    rules = [rule for d in documents if d["kind"] == "Role" for rule in d["rules"]]
    named = [
        rule["resourceNames"] for rule in rules if rule["resources"] == ["leases"] and "resourceNames" in rule
    ]
    assert named == [[lease]]

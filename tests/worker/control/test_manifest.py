from __future__ import annotations

import pytest

from rpcgroup.control.manifest import parse_manifest
from rpcgroup.errors import ManifestError

HEAD = "apiVersion: rpcgroup.dev/v1alpha1\nkind: RPCGroup\nmetadata: {name: digits}\n"
TEMPLATE = "{spec: {containers: [{name: main, command: [python, train.py]}]}}"


def faults(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    return str(caught.value).splitlines()


def spec(*lines: str) -> str:
    return HEAD + "spec:\n" + "".join(f"  {line}\n" for line in lines)


def test_a_whole_group() -> None:
    group = parse_manifest(
        spec(
            "replicas: 3",
            "minReplicas: 1",
            "maxReplicas: 16",
            f"template: {TEMPLATE}",
            f"roles: [{{name: server, replicas: 1, template: {TEMPLATE}}}]",
            'deviceMaps: [{from: worker, to: server, devices: {"cuda:0": "cuda:1"}}]',
            "scaleStrategy: {workersToDelete: [digits-worker-1]}",
            "successPolicy: {role: server}",
            "ttlSecondsAfterFinished: 60",
        )
    )
    assert group.metadata.namespace == "default"
    assert group.spec.roles[0].template.spec.main.command == ["python", "train.py"]
    assert group.spec.device_maps[0].from_ == "worker"
    assert group.spec.scale_strategy.workers_to_delete == ["digits-worker-1"]
    assert not group.spec.suspend


def test_a_template_passes_through_whole() -> None:
    group = parse_manifest(
        spec(
            "template:",
            "  metadata: {labels: {team: vision}, finalizers: [a/b]}",
            "  spec:",
            "    nodeSelector: {disk: ssd}",
            "    containers: [{name: main, resources: {limits: {nvidia.com/gpu: 1}}}]",
        )
    )
    assert group.spec.template is not None
    dumped = group.spec.template.model_dump(by_alias=True, exclude_unset=True)
    assert dumped == {
        "metadata": {"labels": {"team": "vision"}, "finalizers": ["a/b"]},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": 1}}}],
        },
    }


FIELD_FAULTS = {
    'replicas: "3"': 'spec.replicas: expected a whole number, got "3"',
    "replicas: 2.5": "spec.replicas: expected a whole number, got 2.5",
    "replicas: true": "spec.replicas: expected a whole number, got true",
    "replicas: -1": "spec.replicas: expected at least 0, got -1",
    "replica: 3": 'spec.replica: unknown field; did you mean "replicas"?',
    "rolloutStrategy: {rollingUpdate: {maxSurge: 1.5}}": (
        'spec.rolloutStrategy.rollingUpdate.maxSurge: expected a whole number or a percentage up to "100%", got 1.5'
    ),
    "managedBy: kueue": (
        'spec.managedBy: expected a domain and a path (as in `kueue.x-k8s.io/multikueue`), got "kueue"'
    ),
    "suspend: maybe": 'spec.suspend: expected true or false, got "maybe"',
    "roles: server": 'spec.roles: expected a list, got "server"',
    "roles: [{replicas: 1, template: {spec: {containers: [{}]}}}]": (
        "spec.roles[0].name: expected a value, got nothing"
    ),
    "roles: [{name: a, templat: 1}]": 'spec.roles[0].templat: unknown field; did you mean "template"?',
    "roles: [{name: Server, template: {spec: {containers: [{}]}}}]": (
        "spec.roles[0].name: expected a DNS label (lower-case letters, digits and -, as in `digits-2`), "
        'got "Server"'
    ),
    "template: {spec: {containers: []}}": (
        "spec.template.spec.containers: expected at least 1 entry, got an empty list"
    ),
    "template: {spec: {containers: [{command: [python, 3]}]}}": (
        "spec.template.spec.containers[0].command[1]: "
        "expected text (in quotes where YAML reads it as something else), got 3"
    ),
    "deviceMaps: [{from: worker, devices: {}}]": "spec.deviceMaps[0].to: expected a value, got nothing",
    "scaleStrategy: {workerToDelete: [a]}": (
        'spec.scaleStrategy.workerToDelete: unknown field; did you mean "workersToDelete"?'
    ),
}


@pytest.mark.parametrize(("line", "fault"), FIELD_FAULTS.items())
def test_a_fault_names_the_field_and_what_is_expected(line: str, fault: str) -> None:
    assert fault in faults(spec(line))


def test_an_unknown_field_far_from_any_name_lists_those_that_are_known() -> None:
    (line,) = faults(spec(f"template: {TEMPLATE}", "successPolicy: {role: worker, xyzzy: 1}"))
    assert line == "spec.successPolicy.xyzzy: unknown field; known here: role"


CONTRADICTIONS = {
    ("minReplicas: 4", "replicas: 3"): "spec.minReplicas: expected at most spec.replicas, got 4",
    ("maxReplicas: 2", "replicas: 3"): "spec.replicas: expected at most spec.maxReplicas, got 3",
    ("successPolicy: {role: servr}",): (
        'spec.successPolicy.role: expected "worker" or the name of one of spec.roles, got "servr"'
    ),
    ("deviceMaps: [{from: a, to: worker, devices: {}}]",): (
        'spec.deviceMaps: expected each from to be "worker" or the name of one of spec.roles, got "a"'
    ),
    (f"roles: [{{name: a, template: {TEMPLATE}}}, {{name: a, template: {TEMPLATE}}}]",): (
        'spec.roles[1]: expected another name than any entry before it has, got "a" again'
    ),
    (f"roles: [{{name: worker, template: {TEMPLATE}}}]",): (
        'spec.roles[0].name: expected another name than that of the elastic role, got "worker"'
    ),
}


@pytest.mark.parametrize(("lines", "fault"), CONTRADICTIONS.items())
def test_a_contradiction_names_both_fields(lines: tuple[str, ...], fault: str) -> None:
    assert faults(spec(*lines, f"template: {TEMPLATE}")) == [fault]


def test_replicas_need_a_template() -> None:
    assert faults(spec("replicas: 2")) == [
        "spec.template: expected a pod template unless spec.replicas is 0, got nothing"
    ]


def test_every_fault_is_told_at_once() -> None:
    lines = faults(spec('replicas: "3"', "minReplicas: -1", "backofLimit: 3"))
    assert [line.split(":")[0] for line in lines] == [
        "spec.replicas",
        "spec.minReplicas",
        "spec.backofLimit",
    ]


WHOLE_FILE_FAULTS = {
    "": "expected an RPCGroup, got an empty file",
    "# nothing\n---\n": "expected an RPCGroup, got an empty file",
    HEAD + "---\n" + HEAD: "expected one document with one RPCGroup, got 2 documents",
    "spec: {replicas: 3": "line 1, column 19: not YAML: expected ',' or '}', but got '<stream end>'",
    "a: b\n\tc: d\n": "line 2, column 1: not YAML: found character '\\t' that cannot start any token",
    "a: \x00": "not YAML: unacceptable character #x0000: special characters are not allowed",
    "- a": "the manifest: expected fields with values, got a list",
    "kind: Pod\napiVersion: rpcgroup.dev/v1alpha1\nspec: {}": "kind: expected 'RPCGroup', got \"Pod\"",
}


@pytest.mark.parametrize(("text", "fault"), WHOLE_FILE_FAULTS.items())
def test_a_file_that_is_no_group(text: str, fault: str) -> None:
    (line,) = faults(text)
    assert line.startswith(fault)

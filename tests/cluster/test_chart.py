"""The chart before helm and a real API server: linted, rendered, installed, upgraded, uninstalled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from rpcgroup.contract import DOMAIN
from tests.cluster.bed.access import Access, CommandError
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.schemas import LOCATION, write_schemas
from tests.cluster.install_manifest import CHART, install_manifest

ROOT: Final = Path(__file__).parents[2]
CRD: Final = f"crd/rpcgroups.{DOMAIN}"
WAYS: Final = {
    "default": {},
    "three-members": {"etcd": {"replicas": 3, "persistence": {"enabled": False}}},
    "etcd-in-the-clear": {"etcd": {"tls": {"enabled": False}, "persistence": {"enabled": False}}},
    "etcd-for-everybody": {"etcd": {"auth": {"enabled": False}}},
    "etcd-elsewhere": {
        "etcd": {
            "external": {
                "endpoints": ["etcd-0.example.com:2379", "etcd-1.example.com:2379"],
                "caSecret": "etcd-ca",
                "clientCertificateSecret": "etcd-client",
                "userSecret": "etcd-user",
            }
        }
    },
    "some-namespaces": {"watchNamespaces": ["default", "kube-public"], "logLevel": "debug"},
    "one-alone": {"replicaCount": 1, "leaderElection": False, "networkPolicy": {"enabled": False}},
    "placed": {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "podAnnotations": {"note": "1"},
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"repository": "registry.example.com/operator", "tag": "1"},
        "serviceAccount": {"annotations": {"note": "1"}},
        "etcd": {"nodeSelector": {"pool": "system"}, "persistence": {"storageClass": "fast"}},
    },
    "others-account": {"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "mine"}},
}
WRONG: Final = {
    "replicaCount": ({"replicaCount": 2, "leaderElection": False}, "needs leaderElection"),
    "members": ({"etcd": {"replicas": 2}}, "/etcd/replicas"),
    "misspelt": ({"watchNamespace": ["a"]}, "watchNamespace"),
    "level": ({"logLevel": "loud"}, "/logLevel"),
    "endpoint": ({"etcd": {"external": {"endpoints": ["http://e:2379"]}}}, "/etcd/external/endpoints"),
    "metrics-port": ({"metrics": {"port": 8080}}, "/metrics/port"),
    "nameless": ({"serviceAccount": {"create": False}}, "serviceAccount.name must be set"),
}


@pytest.fixture(scope="module")
def control_plane(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Of its own: the definition is this release's, and goes."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), programs) as plane:
        yield plane


def template(access: Access, values: object) -> str:
    return access.helm(
        "template", "r", str(CHART), "--namespace=default", "--values=-", input=json.dumps(values)
    )


def pods(rendered: str) -> list[dict[str, Any]]:
    """What the chart would run: its pods, and one of each template."""
    found = []
    for document in filter(None, yaml.safe_load_all(rendered)):
        if document["kind"] == "Pod":
            found.append(document)
        elif "template" in document.get("spec", {}):
            metadata = {"name": document["metadata"]["name"], **document["spec"]["template"]["metadata"]}
            spec = dict(document["spec"]["template"]["spec"])
            claims = [c["metadata"]["name"] for c in document["spec"].get("volumeClaimTemplates", [])]
            spec["volumes"] = [*spec.get("volumes", []), *({"name": n, "emptyDir": {}} for n in claims)]
            found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return found


def test_it_is_linted(access: Access) -> None:
    for values in WAYS.values():
        access.helm("lint", "--strict", str(CHART), "--values=-", input=json.dumps(values))


@pytest.fixture(scope="module")
def schemas(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where kubeconform finds what the API server knows."""
    folder = tmp_path_factory.mktemp("schemas")
    write_schemas(json.loads(control_plane.access.kubectl("get", "--raw=/openapi/v2")), folder)
    return f"-schema-location={folder}/{LOCATION}"


@pytest.mark.parametrize("way", WAYS)
def test_kubeconform_finds_nothing_wrong(way: str, access: Access, schemas: str) -> None:
    access.kubeconform("-strict", schemas, input=template(access, WAYS[way]))


def test_kubeconform_finds_a_misspelt_field(access: Access, schemas: str) -> None:
    rendered = template(access, {})
    assert "readinessProbe:" in rendered
    with pytest.raises(CommandError, match="readynessProbe"):
        access.kubeconform("-strict", schemas, input=rendered.replace("readinessProbe:", "readynessProbe:"))


@pytest.mark.parametrize("way", WAYS)
def test_the_api_server_takes_it(way: str, access: Access) -> None:
    """With every field known, rules and all."""
    rendered = template(access, WAYS[way])
    access.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", input=rendered)


@pytest.mark.parametrize("way", WAYS)
def test_its_pods_pass_the_restricted_level(way: str, access: Access, namespace: str) -> None:
    access.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    rendered = pods(template(access, WAYS[way]))
    assert len(rendered) == (2 if way == "etcd-elsewhere" else 3)
    for pod in rendered:
        # Its own account is not in this namespace, and has no part in the level.
        pod["spec"].pop("serviceAccountName", None)
        pod["metadata"].pop("namespace", None)
        manifest = json.dumps(pod)
        access.kubectl(
            "create", "--dry-run=server", f"--namespace={namespace}", "--filename=-", input=manifest
        )


def documents(rendered: str, kind: str) -> dict[str, Any]:
    """By name."""
    found = filter(None, yaml.safe_load_all(rendered))
    return {document["metadata"]["name"]: document for document in found if document["kind"] == kind}


def test_the_monitor_finds_the_operators_metrics(access: Access) -> None:
    monitor = {"enabled": True, "interval": "10s", "labels": {"release": "prometheus"}}
    rendered = template(access, {"metrics": {"port": 9191, "serviceMonitor": monitor}})
    assert documents(template(access, {}), "ServiceMonitor") == {}
    found = documents(rendered, "ServiceMonitor")["r-rpcgroup"]
    assert found["metadata"]["labels"]["release"] == "prometheus"
    service = documents(rendered, "Service")["r-rpcgroup-metrics"]
    assert found["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,), (port,) = found["spec"]["endpoints"], service["spec"]["ports"]
    assert (endpoint["port"], endpoint["interval"]) == (port["name"], "10s")
    pod = documents(rendered, "Deployment")["r-rpcgroup-operator"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    assert {"name": "metrics", "containerPort": 9191} in container["ports"]
    assert "--metrics-port=9191" in container["args"]


def test_every_member_of_etcd_is_in_the_certificate(access: Access) -> None:
    rendered = template(access, WAYS["three-members"])
    (etcd,) = documents(rendered, "StatefulSet")["r-rpcgroup-etcd"]["spec"]["template"]["spec"]["containers"]
    (operator,) = documents(rendered, "Deployment")["r-rpcgroup-operator"]["spec"]["template"]["spec"][
        "containers"
    ]
    (hosts,) = [a.partition("=")[2].split(",") for a in operator["args"] if a.startswith("--etcd-hosts=")]
    (members,) = [a.partition("=")[2] for a in etcd["args"] if a.startswith("--initial-cluster=")]
    urls = [member.partition("=")[2] for member in members.split(",")]
    assert len(urls) == 3
    assert {url.removeprefix("https://").removesuffix(":2380") for url in urls} < set(hosts)
    (endpoint,) = [v["value"] for v in operator["env"] if v["name"] == "RPCGROUP_OPERATOR_ETCD"]
    assert endpoint.removesuffix(":2379") in hosts


def test_two_releases_in_a_namespace_share_nothing(access: Access) -> None:
    one, two = (
        access.helm("template", name, str(CHART), "--namespace=default", "--set=crd.install=false")
        for name in ("one", "two")
    )
    names = [
        {(d["kind"], d["metadata"]["name"]) for d in filter(None, yaml.safe_load_all(rendered))}
        for rendered in (one, two)
    ]
    assert not names[0] & names[1]
    for flag in ("--lease-name=", "--secret=", "--etcd-secret="):
        assert [line for line in one.splitlines() if flag in line] != [
            line for line in two.splitlines() if flag in line
        ]


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_refused(what: str, access: Access) -> None:
    values, complaint = WRONG[what]
    with pytest.raises(CommandError) as caught:
        template(access, values)
    assert complaint in str(caught.value)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The chart as an earlier version had it: its definition knew no `ttlSecondsAfterFinished`."""
    chart = tmp_path / "rpcgroup"
    shutil.copytree(CHART, chart)
    path = chart / "files/crd.yaml"
    definition = yaml.safe_load(path.read_text())
    assert spec_of(definition).pop("ttlSecondsAfterFinished")
    path.write_text(yaml.safe_dump(definition, sort_keys=False))
    return chart


def spec_of(definition: dict[str, Any]) -> dict[str, Any]:
    """The fields of a group's spec."""
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields: dict[str, Any] = schema["properties"]["spec"]["properties"]
    return fields


def test_it_is_installed_upgraded_and_uninstalled(access: Access, namespace: str, earlier: Path) -> None:
    here = f"--namespace={namespace}"
    access.helm("install", "r", str(earlier), here)
    access.kubectl("wait", "--for=condition=Established", "--timeout=30s", CRD)
    assert access.get("deployment", "r-rpcgroup-operator", here)["spec"]["replicas"] == 2
    made = access.get(CRD)
    assert "ttlSecondsAfterFinished" not in spec_of(made)

    access.helm("upgrade", "r", str(CHART), here, "--set=replicaCount=1,etcd.resources.limits.memory=2Gi")
    assert access.get("deployment", "r-rpcgroup-operator", here)["spec"]["replicas"] == 1
    assert "ttlSecondsAfterFinished" in spec_of(access.get(CRD)), "an upgrade upgrades the definition"

    access.helm("uninstall", "r", here, "--wait", "--timeout=50s")
    kinds = "deployments,statefulsets,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies"
    label = "--selector=app.kubernetes.io/instance=r"
    left = (
        access.get(kinds, here, label)["items"]
        + access.get("clusterroles,clusterrolebindings", label)["items"]
    )
    assert left == []
    assert access.get(CRD)["metadata"]["uid"] == made["metadata"]["uid"], "the definition stays"

    access.helm("install", "r", str(CHART), here, "--set=crd.keep=false")
    # Asked for first, as an operator would: where nobody has, the API server's deletion of a definition begins with
    # "storage is (re)initializing", tries again after 5 ms, and if its own note of that is not in its cache by then
    # it takes that for another's change and waits for the next resync, minutes later (its crd_finalizer.go).
    access.get("rpcgroups", here)
    access.helm("uninstall", "r", here, "--wait", "--timeout=50s")
    assert access.get("crds", label)["items"] == []


def test_the_install_manifest_is_the_charts(access: Access, programs: Path) -> None:
    path = ROOT / "manifests/install.yaml"
    assert path.read_text() == install_manifest(programs / "helm"), "make install-manifest"
    access.kubectl("apply", "--server-side", "--filename", str(path))
    access.kubectl("delete", "--wait=false", "--filename", str(path))

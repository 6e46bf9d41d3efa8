from __future__ import annotations

from typing import Any

from rpcgroup import contract
from rpcgroup.control.certificates import Authority
from rpcgroup.control.model import RPCGroup, Security
from rpcgroup.control.plan import Create
from rpcgroup_operator import render


def group(**template: Any) -> RPCGroup:
    container = {"name": "main", "image": "x", "env": [{"name": "MINE", "value": "1"}]}
    spec = {"containers": [{"name": "side", "image": "y"}, container], "nodeSelector": {"gpu": "yes"}}
    return RPCGroup.model_validate(
        {
            "apiVersion": contract.API_VERSION,
            "kind": contract.KIND,
            "metadata": {"name": "g", "namespace": "ns"},
            "spec": {"replicas": 1, "minReplicas": 1, "template": {"spec": {**spec, **template}}},
        }
    )


def rendered(wanted: RPCGroup, failures: int = 0) -> dict[str, Any]:
    create = Create("g-worker-0", "worker", 0)
    return render.pod(wanted, "uid-1", create, render.Rendezvous("etcd:2379"), failures)


def test_the_worker_is_told_who_it_is() -> None:
    side, main = rendered(group())["spec"]["containers"]
    assert "env" not in side
    env = {e["name"]: e.get("value") for e in main["env"]}
    assert env[contract.ENV_NAME] == "g-worker-0"
    assert env[contract.ENV_RENDEZVOUS] == "etcd://etcd:2379/ns/g"
    assert env["MINE"] == "1"
    assert {"name", "mountPath", "readOnly"} == main["volumeMounts"][0].keys()


def test_an_unmodified_program_is_told_its_rank() -> None:
    raw = group().model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["spec"]["compat"] = "Torch"
    main = rendered(RPCGroup.model_validate(raw))["spec"]["containers"][1]
    env = {e["name"]: e.get("value") for e in main["env"]}
    assert (env[contract.ENV_COMPAT], env["RANK"], env["WORLD_SIZE"]) == ("torch", "0", "1")


def test_a_worker_is_told_the_device_maps_of_its_role() -> None:
    raw = group().model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["spec"]["deviceMaps"] = [{"from": "worker", "to": "worker", "devices": {"cuda:0": "cuda:1"}}]
    main = rendered(RPCGroup.model_validate(raw))["spec"]["containers"][1]
    env = {e["name"]: e.get("value") for e in main["env"]}
    assert env[contract.ENV_DEVICE_MAPS] == '{"worker": {"cuda:0": "cuda:1"}}'
    assert contract.ENV_DEVICE_MAPS not in str(rendered(group()))


def test_the_template_passes_through() -> None:
    spec = rendered(group(tolerations=[{"key": "gpu"}]))["spec"]
    assert spec["nodeSelector"] == {"gpu": "yes"}
    assert spec["tolerations"] == [{"key": "gpu"}]
    assert spec["restartPolicy"] == "Never"
    assert rendered(group(restartPolicy="OnFailure"))["spec"]["restartPolicy"] == "OnFailure"


def test_labels_annotations_and_finalizers_of_the_template_are_the_pods() -> None:
    raw = group().model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["spec"]["template"]["metadata"] = {
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "finalizers": ["own/f"],
    }
    metadata = rendered(RPCGroup.model_validate(raw))["metadata"]
    assert metadata["labels"]["team"] == "a"
    assert metadata["annotations"] == {"note": "b"}
    assert metadata["finalizers"] == ["own/f"]
    assert "finalizers" not in rendered(group())["metadata"]


def test_the_pod_is_the_groups_and_waits_for_its_gate() -> None:
    pod = rendered(group(readinessGates=[{"conditionType": "own/gate"}]))
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("uid-1", True)
    gates = [gate["conditionType"] for gate in pod["spec"]["readinessGates"]]
    assert gates == ["own/gate", contract.READINESS_GATE]


def test_failures_are_written_on_the_next_pod() -> None:
    assert rendered(group(), failures=2)["metadata"]["annotations"][contract.ANNOTATION_FAILURES] == "2"
    assert contract.ANNOTATION_FAILURES not in rendered(group())["metadata"]["annotations"]


def test_the_hash_is_that_of_the_template_as_written() -> None:
    first, second = group(), group(priorityClassName="high")
    hashes = [render.template_hash(g.roles()["worker"][1]) for g in (first, group(), second)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert rendered(first)["metadata"]["labels"][contract.LABEL_TEMPLATE_HASH] == hashes[0]


def test_rendering_does_not_touch_the_group() -> None:
    wanted = group(volumes=[{"name": "data", "emptyDir": {}}])
    assert rendered(wanted) == rendered(wanted)


def test_the_secret_is_no_one_elses_to_change() -> None:
    secret = render.secret(group(), "uid-1", "s3cret")
    assert secret["immutable"]
    assert secret["stringData"] == {"secret": "s3cret"}
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "uid-1"


def test_what_lets_a_worker_into_etcd_is_in_its_volume() -> None:
    wanted, create = group(), Create("g-worker-0", "worker", 0)
    rendezvous = render.Rendezvous("etcd:2379", users=True, ca=True)
    pod = render.pod(wanted, "0123456789", create, rendezvous)["spec"]
    (volume,) = pod["volumes"]
    names = [source["secret"]["name"] for source in volume["projected"]["sources"]]
    secret = render.etcd_secret(wanted, "0123456789", "hush", b"PEM")
    assert names == [render.secret_name(wanted, "0123456789"), secret["metadata"]["name"]]
    env = {e["name"]: e.get("value") for e in pod["containers"][1]["env"]}
    assert env[contract.ENV_ETCD_USERNAME] == "rpcgroup/ns/g"
    files = {
        env[name].rpartition("/")[2] for name in (contract.ENV_ETCD_PASSWORD_FILE, contract.ENV_ETCD_CA_FILE)
    }
    assert files == secret["stringData"].keys()
    assert set(secret["stringData"].values()) == {"hush", "PEM"}
    assert "etcd" not in str(rendered(wanted)["spec"]["volumes"])


def test_what_a_group_owns_is_of_one_group_only() -> None:
    """One that was deleted a moment ago may still have its own when its successor comes."""
    first, second = ("1" * 36, "2" * 36)
    for name in (
        *(render.secret_name, render.etcd_secret_name, render.authority_secret_name, render.tls_secret_name),
        render.budget_name,
    ):
        assert name(group(), first) != name(group(), second)


def test_the_certificates_are_in_the_volume_and_the_authoritys_key_is_not() -> None:
    plain = group()
    spec = plain.spec.model_copy(update={"security": Security(tls=True)})
    wanted, now = plain.model_copy(update={"spec": spec}), 2e9
    authority = Authority.new(now)
    files = authority.sign("g.ns.rpcgroup.dev", authority.certificate, now)
    tls, ca = render.tls_secret(wanted, "uid-1", files), render.authority_secret(wanted, "uid-1", [authority])
    pod = rendered(wanted)["spec"]
    (volume,) = pod["volumes"]
    names = [source["secret"]["name"] for source in volume["projected"]["sources"]]
    assert names == [render.secret_name(wanted, "uid-1"), tls["metadata"]["name"]]
    assert authority.key.decode() in ca["stringData"].values()
    assert authority.key.decode() not in tls["stringData"].values()
    assert not tls["immutable"], "it is renewed"
    env = {e["name"]: e.get("value") for e in pod["containers"][1]["env"]}
    shown = {
        contract.ENV_TLS_CA_FILE: files.bundle,
        contract.ENV_TLS_CERT_FILE: files.certificate,
        contract.ENV_TLS_KEY_FILE: files.key,
    }
    for name, content in shown.items():
        folder, _, key = (env[name] or "").rpartition("/")
        assert folder == pod["containers"][1]["volumeMounts"][0]["mountPath"]
        assert tls["stringData"][key] == content.decode()
    assert contract.ENV_TLS_CA_FILE not in str(rendered(plain))


def test_the_budget_keeps_the_least() -> None:
    budget = render.disruption_budget(group(), "uid-1")
    assert budget["spec"]["minAvailable"] == 1
    labels = rendered(group())["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert all(
        part.split("=")[1] == labels[part.split("=")[0]] for part in render.selector(group()).split(",")
    )

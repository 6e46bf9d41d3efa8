"""Secrets of an API server that holds them in memory, and refuses what is not of the newest version."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine
from typing import Any

import pytest

from rpcgroup import contract
from rpcgroup.control.certificates import AUTHORITY_LIFE, DELAY, LEAF_LIFE, ROLLOVER
from rpcgroup_operator.api import ApiError, KubeApi, Object
from rpcgroup_operator.certificates import CHECK_SECONDS, Certificates
from rpcgroup_operator.store import Group

NOW = 2_000_000_000.0
TLS, CA = "g-rpcgroup-tls-uid-1234", "g-rpcgroup-ca-uid-1234"


class Secrets(KubeApi):
    """By name. `turns` of the event loop pass before each answer; `log` has what was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.log: list[str] = []
        self.turns = 0

    async def get(self, path: str) -> Object:
        await self._answer("get", path)
        if self._name(path) not in self.objects:
            raise ApiError(404, "NotFound", "")
        return self.objects[self._name(path)]

    async def create(self, path: str, body: Object) -> Object:
        await self._answer("create", f"{path}/{body['metadata']['name']}")
        if body["metadata"]["name"] in self.objects:
            raise ApiError(409, "AlreadyExists", "")
        return self._keep(body, 1)

    async def replace(self, path: str, body: Object) -> Object:
        await self._answer("update", path)
        version = int(self.objects[self._name(path)]["metadata"]["resourceVersion"])
        if body["metadata"]["resourceVersion"] != str(version):
            raise ApiError(409, "Conflict", "")
        return self._keep(body, version + 1)

    def value(self, secret: str, key: str) -> bytes:
        return base64.b64decode(self.objects[secret]["data"][key])

    def take_log(self) -> list[str]:
        log, self.log = self.log, []
        return log

    async def _answer(self, verb: str, path: str) -> None:
        self.log.append(f"{verb} {self._name(path)}")
        for _ in range(self.turns):
            await asyncio.sleep(0)

    def _keep(self, body: Object, version: int) -> Object:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in body["stringData"].items()}
        metadata = {**body["metadata"], "resourceVersion": str(version)}
        self.objects[metadata["name"]] = {**body, "data": data, "metadata": metadata}
        return self.objects[metadata["name"]]

    @staticmethod
    def _name(path: str) -> str:
        assert path.startswith("/api/v1/namespaces/ns/secrets/")
        return path.rpartition("/")[2]


def group(uid: str = "uid-12345678") -> Group:
    return Group.of(
        {
            "apiVersion": contract.API_VERSION,
            "kind": contract.KIND,
            "metadata": {"name": "g", "namespace": "ns", "uid": uid, "resourceVersion": "1"},
            "spec": {"replicas": 0, "security": {"tls": True}},
        }
    )


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


async def make(certificates: Certificates, now: float, of: Group | None = None) -> None:
    of = of or group()
    assert of.spec is not None
    await certificates.make(of, of.spec, now)


@pytest.fixture
def api() -> Secrets:
    return Secrets()


def test_both_are_made_and_only_one_is_for_pods(api: Secrets) -> None:
    run(make(Certificates(api), NOW))
    assert api.take_log() == [f"get {TLS}", f"get {CA}", f"create {CA}", f"create {TLS}"]
    assert api.value(CA, "ca.crt") == api.value(TLS, "ca.crt")
    assert api.value(CA, "ca.key") not in [api.value(TLS, key) for key in api.objects[TLS]["data"]]
    for secret in api.objects.values():
        (owner,) = secret["metadata"]["ownerReferences"]
        assert owner["uid"] == "uid-12345678"
        assert secret["metadata"]["labels"] == {contract.LABEL_GROUP: "g"}


def test_a_resync_writes_nothing_and_seldom_asks(api: Secrets) -> None:
    certificates = Certificates(api)
    run(make(certificates, NOW))
    api.take_log()
    run(make(certificates, NOW + CHECK_SECONDS - 1))
    assert api.take_log() == []
    run(make(certificates, NOW + CHECK_SECONDS))
    run(make(Certificates(api), NOW))
    assert api.take_log() == [f"get {TLS}", f"get {CA}"] * 2


def test_a_leaf_is_renewed_in_time(api: Secrets) -> None:
    run(make(Certificates(api), NOW))
    before = api.value(TLS, "tls.crt")
    run(make(Certificates(api), NOW + 2 / 3 * LEAF_LIFE + 1))
    assert api.take_log()[-1] == f"update {TLS}"
    assert api.value(TLS, "tls.crt") != before


def test_an_authority_is_introduced_before_it_signs_and_kept_until_nothing_is_by_it(api: Secrets) -> None:
    for at in (0, LEAF_LIFE * 2 / 3 + 1, AUTHORITY_LIFE - ROLLOVER):
        run(make(Certificates(api), NOW + at))
    old, new = api.value(CA, "ca.crt").split(b"-----BEGIN")[1:]
    assert api.value(TLS, "ca.crt") == api.value(CA, "ca.crt")
    leaf = api.value(TLS, "tls.crt")
    run(make(Certificates(api), NOW + AUTHORITY_LIFE - ROLLOVER + DELAY - 1))
    assert api.value(TLS, "tls.crt") == leaf
    run(make(Certificates(api), NOW + AUTHORITY_LIFE - ROLLOVER + DELAY))
    assert api.value(TLS, "tls.crt") != leaf
    run(make(Certificates(api), NOW + AUTHORITY_LIFE))
    assert old not in api.value(TLS, "ca.crt")
    assert new in api.value(TLS, "ca.crt")
    assert api.value(CA, "ca.key").count(b"BEGIN") == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_two_operators_at_once_agree(api: Secrets, turns: int) -> None:
    """Who is slower is refused, and sees at its next run what the other has done."""

    async def race(at: float) -> None:
        results = await asyncio.gather(
            make(Certificates(api), at), make(Certificates(api), at), return_exceptions=True
        )
        assert all(result is None or isinstance(result, ApiError) for result in results)
        assert any(result is None for result in results)
        again = Certificates(api)
        api.take_log()
        await make(again, at)
        assert api.take_log() == [f"get {TLS}", f"get {CA}"], "what was made is what is wanted"

    api.turns = turns
    for at in (0, LEAF_LIFE, AUTHORITY_LIFE - ROLLOVER, AUTHORITY_LIFE - ROLLOVER + DELAY, AUTHORITY_LIFE):
        run(race(NOW + at))


def test_an_authority_that_is_deleted_is_followed_by_another(api: Secrets) -> None:
    run(make(Certificates(api), NOW))
    before = api.value(TLS, "ca.crt")
    del api.objects[CA]
    run(make(Certificates(api), NOW + 1))
    assert api.value(TLS, "ca.crt") == api.value(CA, "ca.crt") != before


@pytest.mark.parametrize("secret", [TLS, CA])
def test_what_somebody_has_broken_is_made_anew(api: Secrets, secret: str) -> None:
    run(make(Certificates(api), NOW))
    api.objects[secret]["data"] = None
    run(make(Certificates(api), NOW + 1))
    assert api.value(TLS, "ca.crt") == api.value(CA, "ca.crt")
    assert b"PRIVATE KEY" in api.value(TLS, "tls.key")


def test_another_group_of_the_name_has_its_own(api: Secrets) -> None:
    certificates = Certificates(api)
    run(make(certificates, NOW))
    run(make(certificates, NOW, group("87654321-uid")))
    assert len(api.objects) == 4


def test_who_is_refused_asks_again_at_once(api: Secrets) -> None:
    certificates = Certificates(api)

    async def refused(path: str, body: Object) -> Object:
        raise ApiError(403, "Forbidden", "no")

    create, api.create = api.create, refused  # type: ignore[method-assign]
    with pytest.raises(ApiError):
        run(make(certificates, NOW))
    api.create = create  # type: ignore[method-assign]
    run(make(certificates, NOW))
    assert set(api.objects) == {TLS, CA}

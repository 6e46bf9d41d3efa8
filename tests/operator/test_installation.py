"""What the operator makes once; the API server here is a dictionary."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from rpcgroup_operator import paths
from rpcgroup_operator.api import ApiError, KubeApi, Object
from rpcgroup_operator.installation import etcd_access, owner
from rpcgroup_operator.settings import Settings


class Secrets:
    """Those of the namespace `here`. `slower`: another operator makes each just before this one does."""

    def __init__(self, slower: bool = False) -> None:
        self.there: dict[str, Object] = {}
        self._slower = slower

    async def get(self, path: str) -> Object:
        if path == paths.namespace("kube-system"):
            return {"metadata": {"uid": "u-1"}}
        name = path.removeprefix(paths.secrets("here") + "/")
        if name not in self.there:
            raise ApiError(404, "NotFound", name)
        return self.there[name]

    async def create(self, path: str, body: Object) -> Object:
        assert path == paths.secrets("here")
        name = body["metadata"]["name"]
        if name in self.there or self._slower:
            self.there.setdefault(name, {"data": dict.fromkeys(body["data"], "b3RoZXJz")})
            raise ApiError(409, "AlreadyExists", name)
        self.there[name] = body
        return {"metadata": body["metadata"]}


def settings(**more: Any) -> Settings:
    return Settings(etcd=("etcd:2379",), lease_namespace="here", **more)


OURS = {"etcd_secret": "r-etcd", "etcd_hosts": ("etcd",), "etcd_auth": True, "secret": "r-operator"}


def test_what_is_made_once_is_found_again() -> None:
    api = Secrets()
    first = asyncio.run(etcd_access(cast(KubeApi, api), settings(**OURS)))
    again = asyncio.run(etcd_access(cast(KubeApi, api), settings(**OURS)))
    assert first == again
    assert first.is_ours
    assert first.credentials.username == "root"
    assert first.credentials.ca_pem.startswith(b"-----BEGIN CERTIFICATE")
    assert len(first.password_key) == 64
    assert first.password_key.decode() != first.credentials.password
    assert all(secret["immutable"] for secret in api.there.values())


def test_the_first_of_several_operators_is_followed() -> None:
    access = asyncio.run(etcd_access(cast(KubeApi, Secrets(slower=True)), settings(**OURS)))
    assert access.password_key == b"others"
    assert access.credentials.password == "others"


def test_an_etcd_of_others_is_entered_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPCGROUP_ETCD_USERNAME", "operator")
    monkeypatch.setenv("RPCGROUP_ETCD_PASSWORD", "hush")
    api = Secrets()
    access = asyncio.run(etcd_access(cast(KubeApi, api), settings(secret="r-operator")))
    assert (access.credentials.username, access.credentials.password) == ("operator", "hush")
    assert not access.is_ours
    assert access.password_key
    assert list(api.there) == ["r-operator"]


def test_an_operator_is_known_by_its_cluster_and_its_lease() -> None:
    found = asyncio.run(owner(cast(KubeApi, Secrets()), settings(lease_name="r")))
    assert found == "u-1/here/r"

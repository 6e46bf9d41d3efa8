"""What the operator makes once for itself and for the etcd of its chart, and keeps in Secrets of its namespace."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping

from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.users import ROOT
from rpcgroup_operator import paths
from rpcgroup_operator.api import ApiError, KubeApi, Object
from rpcgroup_operator.etcd_certificates import new_certificates
from rpcgroup_operator.places import EtcdAccess
from rpcgroup_operator.settings import Settings

__all__ = ["etcd_access", "owner"]

PASSWORD_KEY = "group-password-key"
ROOT_PASSWORD = "etcd-root-password"


async def etcd_access(api: KubeApi, settings: Settings) -> EtcdAccess:
    """Raises `ApiError`, `OSError`, `TimeoutError`."""
    namespace = settings.own_namespace()
    credentials = EtcdCredentials.from_env()
    key = b""
    if settings.etcd_secret:
        files = await _kept(
            api, namespace, settings.etcd_secret, lambda: new_certificates(settings.etcd_hosts)
        )
        credentials = EtcdCredentials(ca_pem=files["ca.crt"])
    if settings.secret:
        own = await _kept(api, namespace, settings.secret, _new_secret)
        key = own[PASSWORD_KEY]
        if settings.etcd_auth:
            credentials = EtcdCredentials(
                ca_pem=credentials.ca_pem, username=ROOT, password=own[ROOT_PASSWORD].decode()
            )
    return EtcdAccess(settings.etcd, credentials, settings.etcd_auth, key)


async def owner(api: KubeApi, settings: Settings) -> str:
    """Names this installation of the operator before those of all clusters.

    A cluster has no name of its own; the UID of its namespace kube-system is what stands for one.
    """
    cluster = await api.get(paths.namespace("kube-system"))
    return "/".join([cluster["metadata"]["uid"], settings.own_namespace(), settings.lease_name])


async def _kept(
    api: KubeApi, namespace: str, name: str, new: Callable[[], Mapping[str, bytes]]
) -> dict[str, bytes]:
    """What the Secret holds. Where there is none it is made, of what the first of several operators had."""
    path = paths.secret(namespace, name)
    try:
        found = await api.get(path)
    except ApiError as exc:
        if exc.status != 404:
            raise
        try:
            await api.create(paths.secrets(namespace), _secret(namespace, name, new()))
        except ApiError as conflict:
            if conflict.reason != "AlreadyExists":
                raise
        found = await api.get(path)
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def _secret(namespace: str, name: str, content: Mapping[str, bytes]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "rpcgroup-operator"},
        },
        "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
    }


def _new_secret() -> dict[str, bytes]:
    return {name: secrets.token_hex(32).encode() for name in (PASSWORD_KEY, ROOT_PASSWORD)}

"""The certificates of groups with TLS, in Secrets: the authority's, which no pod mounts, and the workers'."""

from __future__ import annotations

import base64
import logging
import re
from typing import Final

from rpcgroup import contract
from rpcgroup.control.certificates import Authority, Files, next_change_at, wanted_authorities, wanted_files
from rpcgroup.control.model import RPCGroup
from rpcgroup_operator import paths, render
from rpcgroup_operator.api import ApiError, KubeApi, Object
from rpcgroup_operator.members import GroupKey
from rpcgroup_operator.store import Group

__all__ = ["Certificates"]

CHECK_SECONDS: Final = 300.0
"""Until the next look though nothing is due: whoever deletes the authority's Secret wants another one."""
PEM: Final = re.compile(rb"-----BEGIN [^-]+-----.+?-----END [^-]+-----\n", re.DOTALL)

_log = logging.getLogger(__name__)


class Certificates:
    """Keeps nothing but when to look again: all else is in the Secrets."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._due: dict[GroupKey, tuple[str, float]] = {}
        """Unix seconds, with the UID of the group."""

    async def make(self, group: Group, spec: RPCGroup, now: float) -> None:
        """Bring both Secrets up to date where it is time for a look. To be called at each reconcile.

        Raises `ApiError` of status 409 where another operator was faster: the next run sees what it has done.
        """
        uid, due = self._due.get(group.key, ("", 0.0))
        if uid == group.uid and now < due:
            return
        due = await self._renew(group, spec, now)
        self._due[group.key] = group.uid, min(due, now + CHECK_SECONDS)

    def forget(self, key: GroupKey) -> None:
        self._due.pop(key, None)

    async def _renew(self, group: Group, spec: RPCGroup, now: float) -> float:
        """Unix seconds at which something else is wanted."""
        # In this order, and written in the other one: so the authorities are as new as the files, whoever wrote them.
        old_files = await self._get(group, render.tls_secret_name(spec, group.uid))
        old_ca = await self._get(group, render.authority_secret_name(spec, group.uid))
        present = _authorities_in(old_ca)
        authorities = wanted_authorities(present, now)
        if authorities != present:
            await self._put(group, render.authority_secret(spec, group.uid, authorities), old_ca)
            _log.info("%s/%s: new certificate authority", *group.key)
        found = _files_in(old_files)
        files = wanted_files(authorities, found, contract.tls_name(*group.key), now)
        if files != found:
            await self._put(group, render.tls_secret(spec, group.uid, files), old_files)
            _log.info("%s/%s: new certificates", *group.key)
        return next_change_at(authorities, files, now)

    async def _get(self, group: Group, name: str) -> Object | None:
        try:
            return await self._api.get(paths.secret(group.key[0], name))
        except ApiError as exc:
            if exc.status != 404:
                raise
            return None

    async def _put(self, group: Group, body: Object, old: Object | None) -> None:
        """In place of `old`, and of nothing else."""
        if old is None:
            await self._api.create(paths.secrets(group.key[0]), body)
            return
        body["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        await self._api.replace(paths.secret(group.key[0], body["metadata"]["name"]), body)


def _authorities_in(secret: Object | None) -> tuple[Authority, ...]:
    certificates, keys = (PEM.findall(_value(secret, key)) for key in (render.CA_KEY, render.CA_PRIVATE_KEY))
    return tuple(Authority(*pair) for pair in zip(certificates, keys, strict=False))


def _files_in(secret: Object | None) -> Files | None:
    values = [_value(secret, key) for key in (render.CA_KEY, render.TLS_CERT_KEY, render.TLS_PRIVATE_KEY)]
    return Files(*values) if all(values) else None


def _value(secret: Object | None, key: str) -> bytes:
    return base64.b64decode(((secret or {}).get("data") or {}).get(key, ""))

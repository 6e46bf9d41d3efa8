"""The Kubernetes API, as far as the operator calls it: plain dicts in and out, one request each.

The client library brings the configuration, TLS and authentication; its typed models are left out, since to build
one for each pod of a large group costs more than the request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from kubernetes.aio.client import ApiClient

__all__ = ["ApiError", "KubeApi", "Object"]

Object = dict[str, Any]

REQUEST_SECONDS: Final = 15.0
FIELD_MANAGER: Final = "rpcgroup-operator"


class ApiError(Exception):
    """The API server has refused a request. `status` is the HTTP status, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP status {status}")
        self.status = status
        self.reason = reason


class KubeApi:
    """Raises `ApiError` for what is refused, an `OSError` or `TimeoutError` where nobody answers."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, path: str) -> Object:
        return await self._request("GET", path)

    async def create(self, path: str, body: Object) -> Object:
        return await self._request("POST", path, body, query={"fieldManager": FIELD_MANAGER})

    async def replace(self, path: str, body: Object) -> Object:
        """Refused with status 409 where `body` is not of the newest resource version."""
        return await self._request("PUT", path, body, query={"fieldManager": FIELD_MANAGER})

    async def apply(self, path: str, body: Object) -> Object:
        """Server-side apply: what `body` says is the operator's, the rest is left alone."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._request("PATCH", path, body, "application/apply-patch+yaml", query)

    async def merge(self, path: str, body: Object) -> Object:
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PATCH", path, body, "application/merge-patch+json", query)

    async def delete(self, path: str, *, grace: float | None = None, uid: str = "") -> None:
        """With `uid`, only that object and not one that has its name since. Nothing where it is gone."""
        body: Object = {"propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = int(grace)
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._request("DELETE", path, body)
        except ApiError as exc:
            if exc.status not in (404, 409):
                raise

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        client = self._client
        await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        response = await client.call_api(method, url, headers, body, _request_timeout=REQUEST_SECONDS)
        data = await response.read()  # type: ignore[no-untyped-call]
        answer: Object = _parsed(data)
        if response.status >= 300:
            raise ApiError(response.status, str(answer.get("reason", "")), str(answer.get("message", "")))
        return answer


def _parsed(data: bytes) -> Object:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"message": data[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {}

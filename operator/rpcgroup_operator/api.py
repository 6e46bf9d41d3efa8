"""The Kubernetes API, as far as the operator calls it: plain dicts in and out, one request each.

The client library brings the configuration, TLS and authentication; its typed models are left out, since to build
one for each pod of a large group costs more than the request.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import ClientError, ClientTimeout
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.rest import RESTResponse

__all__ = ["ApiError", "KubeApi", "Object"]

Object = dict[str, Any]

REQUEST_SECONDS: Final = 15.0
SILENCE_SECONDS: Final = 150.0
"""Of a watch: the API server sends a bookmark each minute where nothing happens."""
FIELD_MANAGER: Final = "rpcgroup-operator"
JSON: Final = "application/json"
METADATA: Final = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

_TIMEOUT: Final = ClientTimeout(total=REQUEST_SECONDS)
_WATCH_TIMEOUT: Final = ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=SILENCE_SECONDS)


class ApiError(Exception):
    """The API server has refused a request.

    `status` is the HTTP status, `reason` Kubernetes' word for it, `causes` its words for the details.
    """

    def __init__(self, status: int, reason: str, message: str, causes: frozenset[str] = frozenset()) -> None:
        super().__init__(message or reason or f"HTTP status {status}")
        self.status = status
        self.reason = reason
        self.causes = causes


class KubeApi:
    """Raises `ApiError` for what is refused, an `OSError` or `TimeoutError` where nobody answers."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, path: str) -> Object:
        return await self._request("GET", path)

    async def watch(self, path: str) -> AsyncIterator[Object]:
        """The events of a watch, until the server ends it. A long silence is a `TimeoutError`."""
        response = await self._send("GET", path, None, JSON, JSON, _WATCH_TIMEOUT)
        try:
            with _as_connection_error():
                if response.status >= 300:
                    raise _refusal(response.status, await response.read())  # type: ignore[no-untyped-call]
                async for line in response.response.content:
                    yield _parsed(line)
        finally:
            response.response.close()

    async def create(self, path: str, body: Object) -> Object:
        """What comes back is the metadata alone: a third of the bytes, and nothing of a secret."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("POST", path, body, query=query, accept=METADATA)

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
        content_type: str = JSON,
        query: Mapping[str, str] | None = None,
        accept: str = JSON,
    ) -> Object:
        url = path + (f"?{urlencode(query)}" if query else "")
        response = await self._send(method, url, body, content_type, accept, _TIMEOUT)
        with _as_connection_error():
            data = await response.read()  # type: ignore[no-untyped-call]
        if response.status >= 300:
            raise _refusal(response.status, data)
        return _parsed(data)

    async def _send(
        self,
        method: str,
        path: str,
        body: Object | None,
        content_type: str,
        accept: str,
        timeout: ClientTimeout,
    ) -> RESTResponse:
        headers = {"Accept": accept, "Content-Type": content_type}
        client = self._client
        await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = client.configuration.host + path
        with _as_connection_error():
            return await client.call_api(method, url, headers, body, _request_timeout=timeout)


@contextmanager
def _as_connection_error() -> Iterator[None]:
    """aiohttp's own errors of a connection are no `OSError`s."""
    try:
        yield
    except ClientError as exc:
        raise ConnectionError(str(exc) or type(exc).__name__) from exc


def _refusal(status: int, data: bytes) -> ApiError:
    answer = _parsed(data)
    causes = (answer.get("details") or {}).get("causes") or []
    return ApiError(
        status,
        str(answer.get("reason", "")),
        str(answer.get("message", "")),
        frozenset(str(cause.get("reason", "")) for cause in causes),
    )


def _parsed(data: bytes) -> Object:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"message": data[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {}

"""Who may do what in etcd: a group's own user and role, and root, with whom authentication begins.

Source: https://etcd.io/docs/latest/op-guide/authentication/rbac/
"""

from __future__ import annotations

import enum
from typing import Final, TypeVar

import grpc

from rpcgroup.membership.etcd.auth_messages import (
    AUTH_ENABLE,
    AUTH_STATUS,
    AUTHENTICATE,
    ROLE_ADD,
    ROLE_DELETE,
    ROLE_GET,
    ROLE_GRANT_PERMISSION,
    USER_ADD,
    USER_CHANGE_PASSWORD,
    USER_DELETE,
    USER_GET,
    USER_GRANT_ROLE,
    AuthEnableRequest,
    AuthenticateRequest,
    AuthStatusRequest,
    Permission,
    RoleAddRequest,
    RoleDeleteRequest,
    RoleGetRequest,
    RoleGrantPermissionRequest,
    UserAddRequest,
    UserChangePasswordRequest,
    UserDeleteRequest,
    UserGetRequest,
    UserGrantRoleRequest,
)
from rpcgroup.membership.etcd.client import AUTHENTICATE_SECONDS, EtcdClient, EtcdRefusedError
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import Method, prefix_end
from rpcgroup.membership.rendezvous import OPERATION_SECONDS

__all__ = ["ROOT", "Authentication", "Users", "enable_authentication"]

ROOT: Final = "root"
"""etcd's name for the user, and for the role, that may do everything."""
READ_WRITE: Final = 2

_EXISTS = "already exists"
_UNKNOWN = "not found"
_WRONG_PASSWORD = "invalid user ID or password"
_NO_USER = "user name is empty"

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Authentication(enum.Enum):
    """What etcd asks of its clients, and what it lets this one do."""

    OFF = "everybody may do everything"
    ADMINISTRATOR = "this client may manage users"
    ORDINARY = "this client may not"


def enable_authentication(client: EtcdClient, password: str) -> None:
    """Make the user root with that password and turn authentication on; nothing where it is on.

    `client` has no user. What another process does of this at the same time, or has done of it before it ended,
    is no hindrance.
    """
    try:
        _tolerant(client, _EXISTS, ROLE_ADD, RoleAddRequest(ROOT))
        if not _tolerant(client, _EXISTS, USER_ADD, UserAddRequest(ROOT, password)):
            client.retry(USER_CHANGE_PASSWORD, UserChangePasswordRequest(ROOT, password), OPERATION_SECONDS)
        client.retry(USER_GRANT_ROLE, UserGrantRoleRequest(ROOT, ROOT), OPERATION_SECONDS)
        client.retry(AUTH_ENABLE, AuthEnableRequest(), OPERATION_SECONDS)
    except EtcdRefusedError as exc:
        if _NO_USER not in str(exc):  # which says that authentication is on
            raise


class Users:
    """The users of groups. Each request can be repeated, also after a process that ended half way.

    Each raises `RendezvousUnavailableError` where etcd does not answer, `EtcdRefusedError` where it refuses.
    """

    def __init__(self, client: EtcdClient) -> None:
        self._client = client

    def authentication(self) -> Authentication:
        try:
            status = self._client.retry(AUTH_STATUS, AuthStatusRequest(), OPERATION_SECONDS)
            if (
                status.enabled
            ):  # to know so much may be everybody's right; of root only an administrator may ask
                self._client.retry(USER_GET, UserGetRequest(ROOT), OPERATION_SECONDS)
        except EtcdRefusedError as exc:
            if exc.code is grpc.StatusCode.PERMISSION_DENIED or _NO_USER in str(exc):
                return Authentication.ORDINARY
            raise
        return Authentication.ADMINISTRATOR if status.enabled else Authentication.OFF

    def make(self, group: GroupKeys, password: str) -> None:
        """A user who has this password and may read and write what is the group's, and nothing else.

        What fits is left as it is: each change of a user or role costs every client of etcd something, and a
        change of the password the user's clients a login.
        """
        self._make_role(group)
        self._make_user(group.user, password)

    def remove(self, group: GroupKeys) -> None:
        _tolerant(self._client, _UNKNOWN, USER_DELETE, UserDeleteRequest(group.user))
        _tolerant(self._client, _UNKNOWN, ROLE_DELETE, RoleDeleteRequest(group.user))

    def _make_role(self, group: GroupKeys) -> None:
        role = _tolerant(self._client, _UNKNOWN, ROLE_GET, RoleGetRequest(group.user))
        if role is None:
            _tolerant(self._client, _EXISTS, ROLE_ADD, RoleAddRequest(group.user))
        for prefix in group.prefixes:
            permission = Permission(READ_WRITE, prefix, prefix_end(prefix))
            if role is None or permission not in role.permissions:
                request = RoleGrantPermissionRequest(group.user, permission)
                self._client.retry(ROLE_GRANT_PERMISSION, request, OPERATION_SECONDS)

    def _make_user(self, name: str, password: str) -> None:
        user = _tolerant(self._client, _UNKNOWN, USER_GET, UserGetRequest(name))
        if user is None:
            _tolerant(self._client, _EXISTS, USER_ADD, UserAddRequest(name, password))
        elif not self._fits(name, password):
            request = UserChangePasswordRequest(name, password)
            self._client.retry(USER_CHANGE_PASSWORD, request, OPERATION_SECONDS)
        if user is None or name not in user.roles:
            self._client.retry(USER_GRANT_ROLE, UserGrantRoleRequest(name, name), OPERATION_SECONDS)

    def _fits(self, name: str, password: str) -> bool:
        try:
            self._client.call(AUTHENTICATE, AuthenticateRequest(name, password), AUTHENTICATE_SECONDS)
        except EtcdRefusedError as exc:
            if _WRONG_PASSWORD not in str(exc):
                raise
            return False
        return True


def _tolerant(
    client: EtcdClient, refusal: str, method: Method[_Request, _Response], request: _Request
) -> _Response | None:
    """None where etcd refuses with these words: it is as it should be, be it by a try whose answer was lost."""
    try:
        return client.retry(method, request, OPERATION_SECONDS)
    except EtcdRefusedError as exc:
        if refusal not in str(exc):
            raise
        return None

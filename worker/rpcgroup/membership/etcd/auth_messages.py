"""The messages and methods of etcd's Auth service, as far as this package uses it; the same since 3.5.

Source: https://github.com/etcd-io/etcd/blob/main/api/etcdserverpb/rpc.proto and api/authpb/auth.proto
"""

# ruff: noqa: RUF009 - `wire` is dataclasses.field
from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rpcgroup.membership.etcd.codec import Kind, wire
from rpcgroup.membership.etcd.messages import Header, Method

__all__ = [
    "AUTHENTICATE",
    "AUTH_ENABLE",
    "AUTH_STATUS",
    "ROLE_ADD",
    "ROLE_DELETE",
    "ROLE_GET",
    "ROLE_GRANT_PERMISSION",
    "USER_ADD",
    "USER_CHANGE_PASSWORD",
    "USER_DELETE",
    "USER_GET",
    "USER_GRANT_ROLE",
    "AuthEnableRequest",
    "AuthEnableResponse",
    "AuthStatusRequest",
    "AuthStatusResponse",
    "AuthenticateRequest",
    "AuthenticateResponse",
    "Permission",
    "RoleAddRequest",
    "RoleAddResponse",
    "RoleDeleteRequest",
    "RoleDeleteResponse",
    "RoleGetRequest",
    "RoleGetResponse",
    "RoleGrantPermissionRequest",
    "RoleGrantPermissionResponse",
    "UserAddRequest",
    "UserAddResponse",
    "UserChangePasswordRequest",
    "UserChangePasswordResponse",
    "UserDeleteRequest",
    "UserDeleteResponse",
    "UserGetRequest",
    "UserGetResponse",
    "UserGrantRoleRequest",
    "UserGrantRoleResponse",
]

_INT, _UINT, _BOOL, _BYTES, _STRING = Kind


@dataclass
class AuthenticateRequest:
    name: str = wire(1, _STRING)
    password: str = wire(2, _STRING)


@dataclass
class AuthenticateResponse:
    header: Header = wire(1, Header)
    token: str = wire(2, _STRING)


@dataclass
class AuthEnableRequest:
    pass


@dataclass
class AuthEnableResponse:
    header: Header = wire(1, Header)


@dataclass
class AuthStatusRequest:
    pass


@dataclass
class AuthStatusResponse:
    header: Header = wire(1, Header)
    enabled: bool = wire(2, _BOOL)
    auth_revision: int = wire(3, _UINT)


@dataclass
class UserAddRequest:
    name: str = wire(1, _STRING)
    password: str = wire(2, _STRING)


@dataclass
class UserAddResponse:
    header: Header = wire(1, Header)


@dataclass
class UserGetRequest:
    name: str = wire(1, _STRING)


@dataclass
class UserGetResponse:
    header: Header = wire(1, Header)
    roles: list[str] = wire(2, _STRING, repeated=True)


@dataclass
class UserDeleteRequest:
    name: str = wire(1, _STRING)


@dataclass
class UserDeleteResponse:
    header: Header = wire(1, Header)


@dataclass
class UserChangePasswordRequest:
    name: str = wire(1, _STRING)
    password: str = wire(2, _STRING)


@dataclass
class UserChangePasswordResponse:
    header: Header = wire(1, Header)


@dataclass
class UserGrantRoleRequest:
    user: str = wire(1, _STRING)
    role: str = wire(2, _STRING)


@dataclass
class UserGrantRoleResponse:
    header: Header = wire(1, Header)


@dataclass
class RoleAddRequest:
    name: str = wire(1, _STRING)


@dataclass
class RoleAddResponse:
    header: Header = wire(1, Header)


@dataclass
class Permission:
    """`type`: READ 0, WRITE 1, READWRITE 2. Of all keys from `key` up to `range_end`."""

    type: int = wire(1, _INT)
    key: bytes = wire(2, _BYTES)
    range_end: bytes = wire(3, _BYTES)


@dataclass
class RoleGetRequest:
    role: str = wire(1, _STRING)


@dataclass
class RoleGetResponse:
    header: Header = wire(1, Header)
    permissions: list[Permission] = wire(2, Permission, repeated=True)


@dataclass
class RoleDeleteRequest:
    role: str = wire(1, _STRING)


@dataclass
class RoleDeleteResponse:
    header: Header = wire(1, Header)


@dataclass
class RoleGrantPermissionRequest:
    name: str = wire(1, _STRING)
    permission: Permission = wire(2, Permission)


@dataclass
class RoleGrantPermissionResponse:
    header: Header = wire(1, Header)


AUTHENTICATE: Final = Method("/etcdserverpb.Auth/Authenticate", AuthenticateRequest, AuthenticateResponse)
AUTH_ENABLE: Final = Method("/etcdserverpb.Auth/AuthEnable", AuthEnableRequest, AuthEnableResponse)
AUTH_STATUS: Final = Method("/etcdserverpb.Auth/AuthStatus", AuthStatusRequest, AuthStatusResponse)
USER_ADD: Final = Method("/etcdserverpb.Auth/UserAdd", UserAddRequest, UserAddResponse)
USER_GET: Final = Method("/etcdserverpb.Auth/UserGet", UserGetRequest, UserGetResponse)
USER_DELETE: Final = Method("/etcdserverpb.Auth/UserDelete", UserDeleteRequest, UserDeleteResponse)
USER_CHANGE_PASSWORD: Final = Method(
    "/etcdserverpb.Auth/UserChangePassword", UserChangePasswordRequest, UserChangePasswordResponse
)
USER_GRANT_ROLE: Final = Method(
    "/etcdserverpb.Auth/UserGrantRole", UserGrantRoleRequest, UserGrantRoleResponse
)
ROLE_ADD: Final = Method("/etcdserverpb.Auth/RoleAdd", RoleAddRequest, RoleAddResponse)
ROLE_GET: Final = Method("/etcdserverpb.Auth/RoleGet", RoleGetRequest, RoleGetResponse)
ROLE_DELETE: Final = Method("/etcdserverpb.Auth/RoleDelete", RoleDeleteRequest, RoleDeleteResponse)
ROLE_GRANT_PERMISSION: Final = Method(
    "/etcdserverpb.Auth/RoleGrantPermission", RoleGrantPermissionRequest, RoleGrantPermissionResponse
)

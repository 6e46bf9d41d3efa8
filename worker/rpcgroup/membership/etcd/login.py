"""A client's login: one token for all its threads, asked for by one of them, and given up when it is of no use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from rpcgroup.membership.etcd.auth_messages import AuthenticateRequest
from rpcgroup.membership.etcd.credentials import EtcdCredentials

__all__ = ["USERS_CHANGED", "Login", "token_is_stale"]

USERS_CHANGED: Final = "revision of auth store is old"
"""Someone's user or role has changed while the call was on its way. A simple token is as good as before, one that
etcd has signed (JWT) is not: a login is tried only where the call is refused again."""
STALE: Final = ("invalid auth token", USERS_CHANGED, "user name is empty")
OVERDUE: Final = 2
"""Calls in a row without an answer in time, after which the next one logs in anew. A simple token ends with the raft
index at which it was given, and etcd lets a call wait until it is there: a store that came back empty waits long."""


def token_is_stale(error: object) -> bool:
    return any(sign in str(error) for sign in STALE)


class Login:
    """Thread-safe."""

    def __init__(self, credentials: EtcdCredentials) -> None:
        self._credentials = credentials
        self._turn = threading.Lock()  # held during a login, so that there is one at a time; guards _token
        self._token = ""
        self._overdue = 0  # a guess: two threads that count at once may count one

    def token(self, log_in: Callable[[AuthenticateRequest], str]) -> str:
        """Empty without a user. Where there is none yet, `log_in` is asked for it, and its errors are raised."""
        if not self._credentials.username:
            return ""
        with self._turn:
            if not self._token or self._overdue >= OVERDUE:
                self._token = log_in(
                    AuthenticateRequest(self._credentials.username, self._credentials.password)
                )
                self._overdue = 0
            return self._token

    def forget(self, token: str) -> None:
        """The next call logs in, unless another thread has since `token`."""
        with self._turn:
            if self._token == token:
                self._token = ""

    def was_overdue(self) -> None:
        """A call had no answer in time."""
        self._overdue += 1

    def was_answered(self) -> None:
        """The token was good for a call."""
        self._overdue = 0

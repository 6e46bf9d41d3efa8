from __future__ import annotations

import pytest

from rpcgroup.membership.etcd.auth_messages import AuthenticateRequest
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.login import OVERDUE, Login, token_is_stale


class Etcd:
    def __init__(self) -> None:
        self.logins = 0

    def log_in(self, request: AuthenticateRequest) -> str:
        assert request == AuthenticateRequest("worker", "hush")
        self.logins += 1
        return f"token {self.logins}"


@pytest.fixture
def login() -> Login:
    return Login(EtcdCredentials(username="worker", password="hush"))


def test_a_token_is_asked_for_once(login: Login) -> None:
    etcd = Etcd()
    assert [login.token(etcd.log_in) for _ in range(3)] == ["token 1"] * 3


def test_without_a_user_there_is_none() -> None:
    etcd = Etcd()
    assert Login(EtcdCredentials()).token(etcd.log_in) == ""
    assert etcd.logins == 0


def test_it_is_given_up_once_however_many_threads_were_refused(login: Login) -> None:
    etcd = Etcd()
    old = login.token(etcd.log_in)
    login.forget(old)
    assert login.token(etcd.log_in) == "token 2"
    login.forget(old)
    assert login.token(etcd.log_in) == "token 2"


def test_calls_that_wait_in_vain_one_after_the_other_end_it(login: Login) -> None:
    etcd = Etcd()
    login.token(etcd.log_in)
    for _ in range(OVERDUE - 1):
        login.was_overdue()
    login.was_answered()
    login.was_overdue()
    assert login.token(etcd.log_in) == "token 1"
    login.was_overdue()
    assert login.token(etcd.log_in) == login.token(etcd.log_in) == "token 2"


def test_a_login_that_failed_is_tried_again(login: Login) -> None:
    def fail(request: AuthenticateRequest) -> str:
        raise OSError

    with pytest.raises(OSError):
        login.token(fail)
    assert login.token(Etcd().log_in) == "token 1"


@pytest.mark.parametrize(
    ("text", "stale"),
    [
        ("etcdserver: invalid auth token", True),
        ("etcdserver: revision of auth store is old", True),
        ("etcdserver: user name is empty", True),
        ("etcdserver: permission denied", False),
    ],
)
def test_which_refusals_a_login_may_help(text: str, stale: bool) -> None:
    assert token_is_stale(text) is stale

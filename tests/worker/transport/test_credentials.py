"""Certificates that change, or fail, under a worker that runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load

from rpcgroup.control.certificates import LEAF_LIFE, Authority, Files
from rpcgroup.errors import GroupError
from rpcgroup.transport.credentials import Contexts, TlsCredentials, TlsFiles, rehearse
from tests.worker.transport.certificates import NAME, credentials, issue, write


def meets(one: Contexts, other: Contexts) -> bool:
    try:
        rehearse(one.dialer, other.listener, NAME)
    except OSError:
        return False
    return True


def test_files_that_do_not_change_are_read_once(tmp_path: Path) -> None:
    found = credentials(tmp_path)
    assert found.contexts() is found.contexts()


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    found = credentials(tmp_path)
    before = found.contexts()
    write(tmp_path, issue())
    after = found.contexts()
    assert not meets(before, after)
    assert meets(after, after)
    assert found.contexts() is after


def test_both_authorities_of_a_rollover_are_trusted(tmp_path: Path) -> None:
    now = time.time()
    old, new = Authority.new(now), Authority.new(now)
    both = old.certificate + new.certificate
    by_old, by_new = (a.sign(NAME, both, now) for a in (old, new))
    one, other = (
        credentials(tmp_path / "one", by_old).contexts(),
        credentials(tmp_path / "two", by_new).contexts(),
    )
    assert meets(one, other)
    assert meets(other, one)


def half(files: Files) -> Files:
    return replace(files, certificate=files.certificate[: len(files.certificate) // 2])


def of_another_authority(files: Files) -> Files:
    return replace(issue(), bundle=files.bundle)


def with_a_key_of_another(files: Files) -> Files:
    return replace(files, key=issue().key)


def with_a_key_under_a_password(files: Files) -> Files:
    key = load(files.key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    return replace(files, key=key)


def of_the_past(files: Files) -> Files:
    return issue(now=time.time() - 2 * LEAF_LIFE)


BAD: dict[str, tuple[Callable[[Files], Files], str]] = {
    "half a certificate": (half, "do not fit together"),
    "another authority": (of_another_authority, "not one of this group: (unable to get|self-signed)"),
    "another key": (with_a_key_of_another, "the key is not that of the certificate"),
    "a password": (with_a_key_under_a_password, "do not fit together"),
    "another group": (lambda files: issue(name="other"), f"is for other, not for {NAME}"),
    "expired": (of_the_past, "certificate has expired"),
    "empty": (lambda files: replace(files, bundle=b""), "there is no certificate in a file"),
}


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=list(BAD))
def test_bad_files_at_the_start_are_an_error(tmp_path: Path, bad: Callable[[Files], Files], why: str) -> None:
    files = write(tmp_path, bad(issue()))
    with pytest.raises(GroupError, match=f"cannot use the group's certificates: .*{why}"):
        TlsCredentials(files, NAME)


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=list(BAD))
def test_bad_files_later_are_passed_over_with_one_warning(
    tmp_path: Path, bad: Callable[[Files], Files], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = credentials(tmp_path)
    good = found.contexts()
    write(tmp_path, bad(issue()))
    with caplog.at_level(logging.WARNING, "rpcgroup"):
        assert found.contexts() is good
        assert found.contexts() is good
    (record,) = caplog.records
    assert record.getMessage().startswith("going on with the certificates read before: ")
    write(tmp_path, issue())
    assert found.contexts() is not good


def test_what_could_not_be_used_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is far behind takes the new certificates for those of a day to come, and is put right."""
    found = credentials(tmp_path)
    good = found.contexts()
    coming = issue(now=time.time() + LEAF_LIFE)
    write(tmp_path, coming)
    assert found.contexts() is good
    monkeypatch.setattr("rpcgroup.transport.credentials.rehearse", lambda *_: None)
    assert found.contexts() is good, "not at each connection"
    found._again_at = 0.0
    assert found.contexts() is not good


def test_files_that_are_not_there_at_the_start_are_named(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match=f"{tmp_path}/ca: No such file or directory"):
        TlsCredentials(TlsFiles(tmp_path / "ca", tmp_path / "cert", tmp_path / "key"), NAME)


def test_files_that_go_away_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = credentials(tmp_path)
    good = found.contexts()
    os.rename(tmp_path / "..data", tmp_path / "away")
    with caplog.at_level(logging.WARNING, "rpcgroup"):
        assert found.contexts() is good
        assert found.contexts() is good
    assert len(caplog.records) == 1
    os.rename(tmp_path / "away", tmp_path / "..data")
    assert meets(good, found.contexts())


def test_a_change_while_they_are_read_is_read_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = credentials(tmp_path)
    before = found.contexts()
    write(tmp_path, issue())
    load = Contexts.load

    def load_while_they_change(files: TlsFiles, name: str) -> Contexts:
        loaded = load(files, name)
        write(tmp_path, newest)
        return loaded

    newest = issue()
    monkeypatch.setattr(Contexts, "load", load_while_they_change)
    between = found.contexts()
    monkeypatch.setattr(Contexts, "load", load)
    after = found.contexts()
    assert len({before, between, after}) == 3
    assert meets(after, credentials(tmp_path / "newest", newest).contexts())

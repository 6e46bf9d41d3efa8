"""A simulated life of a group's certificates: at every moment everybody can talk to everybody."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcgroup.control import certificates
from rpcgroup.control.certificates import (
    AUTHORITY_LIFE,
    BACKDATE,
    DELAY,
    LEAF_LIFE,
    ROLLOVER,
    Authority,
    Files,
    Phase,
    next_change_at,
    phase,
    wanted_authorities,
    wanted_files,
)
from rpcgroup.errors import HandshakeError
from rpcgroup.transport.credentials import Contexts, rehearse
from tests.worker.transport.certificates import write

NAME = "g.ns.rpcgroup.dev"
START = 2_000_000_000.0
DAY = 86400.0


@dataclass(frozen=True)
class Moment:
    at: float
    authorities: tuple[Authority, ...]
    files: Files

    @property
    def phase(self) -> Phase:
        return phase(self.authorities, self.files, self.at)


def begin(at: float = START) -> Moment:
    authorities = wanted_authorities((), at)
    return Moment(at, authorities, wanted_files(authorities, None, NAME, at))


def later(before: Moment, at: float) -> Moment:
    authorities = wanted_authorities(before.authorities, at)
    return Moment(at, authorities, wanted_files(authorities, before.files, NAME, at))


def due(moment: Moment) -> float:
    return next_change_at(moment.authorities, moment.files, moment.at)


def life(end: float) -> Iterator[Moment]:
    """Every change that is due, each when it is."""
    moment = begin()
    while moment.at < end:
        yield moment
        at = due(moment)
        assert at > moment.at
        moment = later(moment, at)


def verifies(trusting: Files, shown: Files, at: float) -> bool:
    """As a TLS stack does it, without one."""
    leaf = x509.load_pem_x509_certificate(shown.certificate)
    for authority in x509.load_pem_x509_certificates(trusting.bundle):
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        valid = (
            cert.not_valid_before_utc.timestamp() <= at <= cert.not_valid_after_utc.timestamp()
            for cert in (leaf, authority)
        )
        return all(valid)
    return False


def test_an_authority_is_followed_by_the_next_in_three_phases() -> None:
    phases = [moment.phase for moment in life(START + 2.5 * AUTHORITY_LIFE)]
    changes = [phase for phase, _ in itertools.groupby(phases)]
    assert changes[:7] == [Phase.ALONE, *[Phase.INTRODUCED, Phase.RETIRING, Phase.ALONE] * 2]


def test_everybody_talks_to_everybody_at_every_step_of_two_authorities() -> None:
    """Those with the newest files and those whose files are as old as the delay allows."""
    moments = list(life(START + 2.5 * AUTHORITY_LIFE))
    for n, moment in enumerate(moments):
        for at in (moment.at, moment.at + DELAY / 2, moment.at + DELAY - 1, due(moment) - 1):
            if at >= due(moment):
                continue
            held = [m.files for m in moments[: n + 1] if m is moment or due(m) > at - DELAY]
            for one, other in itertools.product(held, repeat=2):
                assert verifies(one, other, at), (moment.phase, (at - START) / DAY)


def test_nobody_waits_for_a_leaf_that_has_ended() -> None:
    for moment in life(START + 2.5 * AUTHORITY_LIFE):
        assert due(moment) <= moment.files.not_after - LEAF_LIFE / 3 or moment.phase is Phase.RETIRING
        assert moment.files.not_after <= max(a.not_after for a in moment.authorities)


def test_what_is_wanted_is_wanted_again_until_it_is_due() -> None:
    for moment in life(START + 1.5 * AUTHORITY_LIFE):
        for at in (moment.at, due(moment) - 1):
            again = later(moment, at)
            assert (again.authorities, again.files) == (moment.authorities, moment.files)


@settings(max_examples=30)
@given(pauses=st.lists(st.floats(60, 100 * DAY), min_size=5, max_size=30))
def test_whoever_looks_seldom_never_parts_those_who_have_read_what_it_wrote(pauses: Sequence[float]) -> None:
    """An operator that is away may be late; with leaves that still live, no change of its own cuts anybody off."""
    before = begin()
    for pause in pauses:
        after = later(before, before.at + pause)
        if after.at < before.files.not_after and after.files != before.files:
            assert verifies(before.files, after.files, after.at)
            assert verifies(after.files, before.files, after.at)
        assert verifies(after.files, after.files, after.at)
        before = after


@settings(max_examples=20)
@given(
    age=st.floats(0, 2 * AUTHORITY_LIFE),
    lost=st.sampled_from(["authorities", "files", "key", "both", "nothing"]),
)
def test_from_whatever_is_left_something_that_works_is_made(age: float, lost: str) -> None:
    *_, moment = life(START + age + 1)
    at = START + age + 1
    authorities, files = moment.authorities, moment.files
    if lost in ("authorities", "both"):
        authorities = ()
    present = None if lost in ("files", "both") else files
    if lost == "key":
        authorities = tuple(Authority(a.certificate, b"?") for a in authorities)
    wanted = wanted_authorities(authorities, at)
    made = wanted_files(wanted, present, NAME, at)
    assert verifies(made, made, at)
    assert wanted_authorities(wanted, at) == wanted
    assert wanted_files(wanted, made, NAME, at) == made


def test_files_that_are_lost_are_signed_by_whom_everybody_knows() -> None:
    """Also by those who have not read the last change yet."""
    moments = list(life(START + 1.5 * AUTHORITY_LIFE))
    for before, moment in itertools.pairwise(moments):
        made = wanted_files(moment.authorities, None, NAME, moment.at)
        for held in {before.files, moment.files} if moment.at < before.files.not_after else {moment.files}:
            assert verifies(held, made, moment.at)
            assert verifies(made, held, moment.at)


def test_the_delay_counts_from_when_the_new_authority_could_be_read() -> None:
    """An operator that dies between its two writes, and comes back long after."""
    first = begin()
    at = first.authorities[0].not_after - ROLLOVER
    *_, before = (m for m in life(at) if m.at < at)
    authorities = wanted_authorities(before.authorities, at)
    assert len(authorities) == 2
    back = at + 3 * DELAY
    files = wanted_files(authorities, before.files, NAME, back)
    assert files.is_by(authorities[0])
    assert wanted_files(authorities, files, NAME, back + DELAY - 1) == files
    assert wanted_files(authorities, files, NAME, back + DELAY).is_by(authorities[1])


def test_an_authority_that_ended_unnoticed_is_followed_at_once() -> None:
    after = later(begin(), START + AUTHORITY_LIFE + DAY)
    assert after.phase is Phase.ALONE
    assert verifies(after.files, after.files, after.at)


def test_a_leaf_does_not_outlive_its_authority_and_is_not_renewed_in_vain() -> None:
    """Somebody comes back half a day before the old authority's end: the new one signs when it has gone."""
    first = begin()
    end = first.authorities[0].not_after
    back = later(first, end - DAY / 2)
    assert back.phase is Phase.INTRODUCED
    assert back.files.not_after == end
    assert due(back) == end
    assert later(back, end - 1).files == back.files
    assert later(back, end).files.is_by(back.authorities[1])


@pytest.mark.parametrize(
    "files",
    [
        lambda files: replace(files, certificate=b"half a cert"),
        lambda files: replace(files, key=b""),
        lambda files: replace(files, key=begin().files.key),
        lambda files: replace(files, key=encrypted()),
        lambda files: replace(files, bundle=files.bundle + b"\n"),
        lambda files: begin().authorities[0].sign("other.ns.rpcgroup.dev", files.bundle, START),
        lambda files: replace(files, certificate=begin().authorities[0].certificate),
    ],
    ids=["certificate", "no key", "other key", "encrypted key", "bundle", "other name", "no leaf"],
)
def test_files_that_are_not_right_are_made_anew(files: object) -> None:
    moment = begin()
    made = wanted_files(moment.authorities, files(moment.files), NAME, START)  # type: ignore[operator]
    assert made != files
    assert verifies(moment.files, made, START)


def encrypted() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def test_a_clock_that_is_behind_takes_a_new_certificate() -> None:
    moment = begin()
    assert verifies(moment.files, moment.files, START - BACKDATE)
    assert not verifies(moment.files, moment.files, START - BACKDATE - 1)


def test_a_real_tls_stack_agrees_through_a_rollover(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL knows no clock but the machine's: so the rollover is one that happens now."""
    now = float(int(time.time()))
    monkeypatch.setattr(certificates, "AUTHORITY_LIFE", ROLLOVER + 2 * DAY)
    old = begin(now - 3 * DAY)
    introduced = later(old, now - DAY)
    retiring = later(introduced, now)
    assert [m.phase for m in (old, introduced, retiring)] == [Phase.ALONE, Phase.INTRODUCED, Phase.RETIRING]
    stranger = begin(now)
    with tempfile.TemporaryDirectory() as folder:
        contexts = {
            m: Contexts.load(write(Path(folder) / str(n), m.files), NAME)
            for n, m in enumerate([old, introduced, retiring, stranger])
        }
    for one, other in [
        (old, introduced),
        (introduced, retiring),
        (retiring, retiring),
        (introduced, introduced),
    ]:
        rehearse(contexts[one].dialer, contexts[other].listener, NAME)
        rehearse(contexts[other].dialer, contexts[one].listener, NAME)
    with pytest.raises(OSError, match="certificate verify failed"):
        rehearse(
            contexts[old].dialer, contexts[retiring].listener, NAME
        )  # whom nobody has seen for longer than the delay
    with pytest.raises(OSError, match="certificate verify failed"):
        rehearse(contexts[stranger].dialer, contexts[retiring].listener, NAME)
    with pytest.raises(HandshakeError, match=f"is for {NAME}, not for other"):
        rehearse(contexts[old].dialer, contexts[old].listener, "other")

"""Whether a worker fits into a group. Pure: every member judges the same."""

from __future__ import annotations

from collections.abc import Sequence

from rpcgroup.contract import ENV_TLS_CERT_FILE
from rpcgroup.devices import validate_group, validate_joiner
from rpcgroup.errors import JoinError
from rpcgroup.membership.record import MemberRecord

__all__ = ["admit", "admit_all"]


def admit(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
    """Whether I fit into the group that was there first; raises `JoinError` that says why not."""
    _check_agreement(mine, earlier)
    validate_joiner(mine, earlier)


def admit_all(last: MemberRecord, others: Sequence[MemberRecord]) -> None:
    """Whether the members of a static group fit together; raises `JoinError` that says why not."""
    members = [*others, last]
    for place, member in enumerate(members):
        _check_agreement(member, members[:place])
    validate_group(members, is_static=True)


def _check_agreement(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
    for other in earlier:
        if other.id == mine.id and other.name != mine.name:
            raise JoinError(f"{mine.name} cannot join with rank {mine.id}: {other.name} has it already")
        if other.called == mine.called and other.name != mine.name:
            raise JoinError(f"{mine.name} cannot join as {mine.called!r}: {other.name} is called so already")
        if _scheme(other) != _scheme(mine):
            raise JoinError(
                f"{mine.name} listens by {_scheme(mine)}, {other.name} by {_scheme(other)}: all members of a group "
                f"have certificates ({ENV_TLS_CERT_FILE} and the others), or none has"
            )
        if other.protocol != mine.protocol:
            raise JoinError(
                f"{mine.name} speaks protocol version {mine.protocol}, {other.name} speaks {other.protocol}: "
                "run one version of rpcgroup in a group"
            )


def _scheme(member: MemberRecord) -> str:
    return member.address.partition("://")[0]

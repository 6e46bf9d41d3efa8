"""What names a reference, and what travels when one is passed on."""

from __future__ import annotations

from typing import NamedTuple

from rpcgroup.errors import RemoteProtocolError

__all__ = ["ForkData", "ForkId", "RRefId", "WireFork"]

_INTEGERS = {int}

WireFork = tuple[int, str, int, int, int, int, int, str]
"""`ForkData` as plain values: what the agent pickles."""


class RRefId(NamedTuple):
    """Names a value for as long as the group lives. One counter per worker numbers both kinds of id."""

    worker: int
    """Incarnation of the worker that made up the id: the owner for `RRef(value)`, the caller for `remote`."""
    local: int


class ForkId(NamedTuple):
    """Names one user's reference to a value. `remote` to oneself uses the RRefId as ForkId."""

    worker: int
    """Incarnation of the worker that made up the id: the one that passed the reference on."""
    local: int


class ForkData(NamedTuple):
    """One reference on its way from `parent` to another worker."""

    owner: int
    """Incarnation."""
    owner_name: str
    rref_id: RRefId
    fork_id: ForkId
    parent: int
    """Incarnation of the worker that passes the reference on."""
    type_name: str
    """Of the value, `module.qualname`; empty where the parent does not know it."""

    def to_wire(self) -> WireFork:
        owner, owner_name, rref_id, fork_id, parent, type_name = self
        return (owner, owner_name, *rref_id, *fork_id, parent, type_name)

    @classmethod
    def from_wire(cls, data: WireFork) -> ForkData:
        """Raises `RemoteProtocolError` for what `to_wire` did not make."""
        try:
            owner, owner_name, rref_worker, rref_local, fork_worker, fork_local, parent, type_name = data
            numbers = (owner, rref_worker, rref_local, fork_worker, fork_local, parent)
            if set(map(type, numbers)) != _INTEGERS or type(owner_name) is not str:
                raise TypeError("wrong types")
        except (TypeError, ValueError) as exc:
            raise RemoteProtocolError(f"not a reference: {data!r}") from exc
        rref_id, fork_id = RRefId(rref_worker, rref_local), ForkId(fork_worker, fork_local)
        return cls(owner, owner_name, rref_id, fork_id, parent, type_name)

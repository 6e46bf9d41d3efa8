"""The member record: what one worker tells the others about itself."""

from __future__ import annotations

import enum
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from rpcgroup.contract import DEFAULT_ROLE, PROTOCOL_VERSION
from rpcgroup.errors import RendezvousError

__all__ = ["MemberRecord", "MemberState", "new_token"]


class MemberState(str, enum.Enum):
    """The life of a member, in its own words (but EVICTED); absence of the record is not one of them.

    LEAVING is the farewell: a record that goes in this state was taken back by its worker. EVICTED is
    written by whoever ran the worker and knows that it is gone, just before its lease is revoked.
    """

    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    LEAVING = "leaving"
    EVICTED = "evicted"


@dataclass(frozen=True)
class MemberRecord:
    """One worker of a group.

    `incarnation` is the etcd create revision of the record when its worker first joined: unique and monotonic
    within the group; it stays when a lost lease makes the worker put its record back. `token` is random and
    proves, when the outcome of a write is unknown, that a record is mine. `id` is the rank where the user
    gave one, else the incarnation. `address` is what a transport can dial, e.g. `tcp://10.0.0.7:41234`.
    `device_maps` is target worker -> source device -> target device, devices written as torch prints them;
    `role_device_maps` the same by the target's role. `rpcgroup.devices.map_for` says which of them counts.
    `known_as` is what the program calls it where that is not its name: a pod's worker has the pod's name.
    `reason` says why a member leaves, where there is something to say: why it did not fit, for example.
    """

    name: str
    role: str = DEFAULT_ROLE
    id: int = -1
    incarnation: int = 0
    token: str = field(default="", repr=False)
    address: str = ""
    host: str = ""
    devices: tuple[str, ...] = ()
    device_count: int = 0
    device_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    role_device_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    state: MemberState = MemberState.JOINING
    labels: Mapping[str, str] = field(default_factory=dict)
    pod_name: str = ""
    pod_uid: str = ""
    known_as: str = ""
    reason: str = ""
    protocol: int = PROTOCOL_VERSION

    def __hash__(self) -> int:
        """Of one life of one worker; the maps in it have none."""
        return hash((self.name, self.incarnation))

    @property
    def called(self) -> str:
        """What programs call it."""
        return self.known_as or self.name

    def follows(self, other: MemberRecord) -> bool:
        """Of a later pod of the same name: Kubernetes gives a name to one at a time, and the operator evicts the
        earlier one's worker, which may be alive after a forced deletion."""
        named = bool(self.pod_name and self.pod_uid and other.pod_uid)
        return named and self.pod_name == other.pod_name and self.pod_uid != other.pod_uid

    def to_json(self) -> bytes:
        raw = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps(raw, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, create_revision: int) -> MemberRecord:
        """Fields unknown to this version are dropped. Raises `RendezvousError` for what is no record."""
        try:
            raw: dict[str, Any] = json.loads(data)
            known = {name: value for name, value in raw.items() if name in _FIELDS}
            known["state"] = MemberState(known.get("state", MemberState.JOINING))
            known["devices"] = tuple(known.get("devices", ()))
            known["incarnation"] = int(known.get("incarnation", 0)) or create_revision
            rank = int(known.get("id", -1))
            known["id"] = rank if rank >= 0 else known["incarnation"]
            return cls(**known)
        except (ValueError, TypeError, AttributeError) as exc:
            raise RendezvousError(f"not a member record: {data[:80]!r}: {exc}") from exc

    def joined(self, create_revision: int) -> MemberRecord:
        """This record as it counts once it is stored: with its incarnation and id."""
        incarnation = self.incarnation or create_revision
        return replace(self, incarnation=incarnation, id=self.id if self.id >= 0 else incarnation)


_FIELDS: Final = frozenset(field.name for field in fields(MemberRecord))


def new_token() -> str:
    """What tells my record from another's of the same name: 128 random bits."""
    return secrets.token_hex(16)

"""Where one group's keys are in etcd; the names themselves stand in `contract`."""

from __future__ import annotations

from dataclasses import dataclass

from rpcgroup import contract

__all__ = ["GroupKeys"]


@dataclass(frozen=True)
class GroupKeys:
    namespace: str
    group: str

    @property
    def user(self) -> str:
        """etcd's name for the group's user and for its role."""
        return contract.etcd_user(self.namespace, self.group)

    @property
    def prefixes(self) -> tuple[bytes, bytes]:
        """All keys of the group begin with one of them."""
        return self._key(""), self.stats

    @property
    def members(self) -> bytes:
        return self._key(contract.MEMBERS)

    @property
    def stats(self) -> bytes:
        return contract.stats_prefix(self.namespace, self.group).encode()

    @property
    def values(self) -> bytes:
        return self._key(contract.KV)

    def member(self, name: str) -> bytes:
        return self.members + name.encode()

    def drain(self, name: str) -> bytes:
        return self._key(contract.DRAIN) + name.encode()

    def member_stats(self, name: str) -> bytes:
        return self.stats + name.encode()

    def value(self, key: str) -> bytes:
        return self.values + key.encode()

    def member_name(self, key: bytes) -> str:
        return key.removeprefix(self.members).decode(errors="replace")

    def _key(self, suffix: str) -> bytes:
        return (contract.group_prefix(self.namespace, self.group) + suffix).encode()

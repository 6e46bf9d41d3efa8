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
    def members(self) -> bytes:
        return self._key(contract.MEMBERS)

    @property
    def stats(self) -> bytes:
        return self._key(contract.STATS)

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

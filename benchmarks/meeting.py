"""Where the processes of a benchmark meet: free ports, and for this project an etcd and a secret."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass, field

from rpcgroup import contract

__all__ = ["Meeting", "free_port"]


def free_port() -> int:
    """Free a moment ago; nobody else takes ports of a benchmark machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Meeting:
    """Handed to each process of a benchmark. `ports` is peer -> the port its two processes meet at."""

    ports: dict[str, int] = field(default_factory=dict)
    etcd: str = ""
    group: str = field(default_factory=lambda: f"bench-{secrets.token_hex(4)}")
    secret: str = field(default_factory=lambda: secrets.token_hex(32))

    def port(self, peer: str) -> int:
        return self.ports[peer]

    @property
    def rendezvous(self) -> str:
        return f"etcd://{self.etcd}/bench/{self.group}"

    @property
    def environment(self) -> dict[str, str]:
        return {contract.ENV_SECRET: self.secret, contract.ENV_HOST: "127.0.0.1"}

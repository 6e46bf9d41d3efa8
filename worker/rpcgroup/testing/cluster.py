"""A whole group in one process: every member with an agent of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.options import AgentOptions
from rpcgroup.contract import DEFAULT_ROLE
from rpcgroup.devices import device_count
from rpcgroup.group import Group
from rpcgroup.membership.memory import MemoryGroup, MemoryRendezvous
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.transport.base import Transport
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.transport.tcp import TcpTransport

__all__ = ["LocalCluster"]

SECRET = b"the secret of a local cluster"
STATS_SECONDS = 3600.0
TRANSPORTS: dict[str, Callable[[], Transport]] = {"memory": MemoryTransport, "tcp": TcpTransport}


class LocalCluster:
    """Members that meet in memory; `cluster["a"]` is the group as the member `a` sees it.

    `transport` is `memory`, `tcp` or one of your own, `FaultyTransport` for example. Everybody knows
    everybody when the constructor and when `join` returns. What is still there is shut down at once at the
    end of the context. `RRef(value)`, which knows one member a process, belongs to the last that joined.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        *,
        transport: str | Transport = "memory",
        options: AgentOptions | None = None,
        group: str = "cluster",
        device_maps: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None,
        role_device_maps: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None,
    ) -> None:
        """`device_maps` is worker -> peer -> device of the worker -> device of the peer; `role_device_maps` is the
        same from role to role.
        """
        self.transport = TRANSPORTS[transport]() if isinstance(transport, str) else transport
        self.rendezvous = MemoryGroup()
        self._options = options
        self._group = group
        self._device_maps = device_maps or {}
        self._role_device_maps = role_device_maps or {}
        self._groups: dict[str, Group] = {}
        self._seats: dict[str, MemoryRendezvous] = {}
        try:
            for name in names:
                self.join(name)
        except BaseException:
            self.close()
            raise

    def join(self, name: str, *, role: str = DEFAULT_ROLE, rank: int = -1) -> Group:
        """One member more; raises what `Group.join` raises."""
        host = name if self.transport.scheme == "memory" else "127.0.0.1"
        agent = Agent(
            name=name,
            group=self._group,
            secret=SECRET,
            transport=self.transport,
            host=host,
            options=self._options,
        )
        seat = MemoryRendezvous(self.rendezvous)
        group = Group(agent, seat, STATS_SECONDS)
        record = MemberRecord(
            name=name,
            role=role,
            id=rank,
            address=agent.address,
            state=MemberState.READY,
            device_count=device_count(),
            device_maps=self._device_maps.get(name, {}),
            role_device_maps=self._role_device_maps.get(role, {}),
        )
        group.join(record)
        group.serve()
        self._groups[name], self._seats[name] = group, seat
        for other in list(self._groups.values()):  # others may join meanwhile
            other.wait_for(len(self._groups), timeout=10)
        return group

    def leave(self, name: str, *, graceful: bool = True) -> None:
        self._groups.pop(name).leave(graceful)

    def crash(self, name: str) -> None:
        """End a member as a process ends that is killed: its record stays."""
        group = self._groups.pop(name)
        self._seats[name].close()
        group.agent.close()
        group.leave(graceful=False)

    def evict(self, name: str) -> None:
        """The same, and take it for dead, as the operator does when a process has gone."""
        self.crash(name)
        MemoryRendezvous(self.rendezvous).evict(name)

    def agent(self, name: str) -> Agent:
        return self._groups[name].agent

    def address(self, name: str) -> str:
        return self._groups[name].agent.address

    def close(self) -> None:
        while self._groups:
            _, group = self._groups.popitem()
            group.leave(graceful=False)

    def __getitem__(self, name: str) -> Group:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

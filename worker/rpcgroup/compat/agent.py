"""The group of this process as an agent of torch's: what `_get_current_rpc_agent` returns."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

from rpcgroup import api
from rpcgroup.devices import DeviceMap, map_for, maps_text
from rpcgroup.errors import UnknownWorkerError
from rpcgroup.finishing import rest_together
from rpcgroup.group import Group
from rpcgroup.membership.record import MemberRecord
from rpcgroup.rref.rref import RRef
from rpcgroup.wire.exceptions import exception_text
from rpcgroup.worker_info import WorkerInfo

__all__ = ["RpcAgent", "TensorPipeAgent"]


class RpcAgent:
    """The base of agents, for programs that ask whether one is."""


class TensorPipeAgent(RpcAgent):
    """A `Group`, by the methods of torch's agent. Made by `init_rpc`."""

    def __init__(
        self, group: Group, store: Any = None, options: Any = None, world_size: int | None = None
    ) -> None:
        """Who gives a `world_size` ends together with the others, wherever they meet."""
        self.group = group
        self.store = store
        self._options = options
        self._world_size = world_size
        self._joined = False
        called = {member.name: member.called for member in group.members()}
        self._roster = {name: called.get(name, name) for name in group.roster or called}
        """What those who have come are called, by name, whatever becomes of them."""
        group.agent.invocation.on_failure = self._print
        group.agent.references.before_remote = require_method
        self._gil_profiling = False

    # -- who is here --------------------------------------------------------------------------------------

    @property
    def is_static_group(self) -> bool:
        return self.group.is_static or bool(self._world_size)

    def get_worker_info(self, worker: str | int | None = None) -> WorkerInfo:
        """This worker, or the member of that name or id. Raises `UnknownWorkerError`."""
        agent = self.group.agent
        if worker is None:
            return agent.info
        try:
            record = agent.peer(worker).record
        except UnknownWorkerError as exc:
            raise UnknownWorkerError(f"could not find destination {worker!r}: {exc}") from None
        return WorkerInfo(record.called, record.id, record.incarnation)

    def get_worker_infos(self) -> list[WorkerInfo]:
        return [WorkerInfo(m.called, m.id, m.incarnation) for m in self.group.members()]

    # -- what it does -------------------------------------------------------------------------------------

    @property
    def rpc_timeout(self) -> float:
        """Seconds, of a call that names none; 0 = none."""
        return self.group.agent.options.rpc_timeout

    @rpc_timeout.setter
    def rpc_timeout(self, seconds: float) -> None:
        agent = self.group.agent
        agent.options = replace(agent.options, rpc_timeout=float(seconds))

    def get_debug_info(self) -> dict[str, str]:
        stats = self.group.agent.stats()
        threads = int(stats["threads"])
        info = {
            "agent.thread_pool_size": self.group.agent.options.num_worker_threads,
            "agent.num_idle_threads": max(0, threads - int(stats["in_flight"])),
            "agent.num_pending_requests": int(stats["pending"]),
            "agent.client_active_calls": int(stats["pending"]),
            "agent.server_active_calls": int(stats["in_flight"]),
            "agent.server_active_async_calls": 0,
        }
        info |= {f"agent.{name}": int(n) for name, n in stats.items() if name.startswith("device_bytes_")}
        if self._gil_profiling:
            info["agent.gil_average_wait_time_us"] = 0
        return {name: str(value) for name, value in info.items()}

    def get_metrics(self) -> dict[str, str]:
        return self.get_debug_info()

    def enable_gil_profiling(self, enabled: bool) -> None:
        """Show `agent.gil_average_wait_time_us`. Its value is 0: nothing here waits for the GIL but Python itself."""
        self._gil_profiling = enabled

    def _get_backend_options(self) -> Any:
        return self._options

    def _get_device_map(self, worker: WorkerInfo) -> DeviceMap:
        me = replace(self.group.me, device_maps=maps_text(getattr(self._options, "device_maps", {})))
        nobody = MemberRecord(worker.name, role="")
        return map_for(me, next((m for m in self.group.members() if m.called == worker.name), nobody))

    def _print(self, exc: BaseException) -> None:
        """As torch does, who sees a worker's output sees what has failed there."""
        print(exception_text(exc, self.group.agent.where), file=sys.stderr)

    # -- the end ------------------------------------------------------------------------------------------

    def meet(self, timeout: float) -> set[str]:
        """Wait until all of a static group who live are here: what they are called. `timeout` in seconds, 0 = none.

        Raises `GroupError` that names who has not come in time.
        """
        return {self._roster[name] for name in self.group.collectives.meet(None, self._roster, timeout)}

    def join(self, shutdown: bool = False, timeout: float = 0) -> None:
        """Wait until nobody in the group has work any more; with `shutdown` new calls are refused from then on.

        `timeout` in seconds, 0 = none. Of a dynamic group only this worker's own calls are waited for.
        """
        self._joined = shutdown
        group = self.group
        if not self.is_static_group:
            group.agent.finish_calls(timeout or math.inf)
            return
        rest_together(group.agent, group.collectives, list(self._roster), timeout or None)
        if shutdown:
            group.part()

    def sync(self) -> None:
        """torch's waits here for all to have their agents; `init_rpc` has done so."""

    def shutdown(self) -> None:
        """Leave the group. Idempotent."""
        if api._group is self.group:
            api.shutdown(graceful=self._joined and not self.is_static_group)


def require_method(rref: RRef[Any], name: str, timeout: float) -> None:
    """torch asks for the type of the value before it makes a reference to a method's result: waits until it is there,
    and raises what that raises, or `AttributeError`.
    """
    getattr(rref._get_type(timeout), name)

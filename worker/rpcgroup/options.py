"""The options of a backend, under torch's names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from rpcgroup.agent.options import AgentOptions
from rpcgroup.devices import Device, DeviceMap, as_device_map, as_devices, maps_text

__all__ = [
    "RpcBackendOptions",
    "TensorPipeRpcBackendOptions",
    "agent_options",
    "as_options",
    "device_options",
]

DEFAULT_NUM_WORKER_THREADS: Final = 16
DEFAULT_RPC_TIMEOUT: Final = 60.0
"""Seconds."""
DEFAULT_INIT_METHOD: Final = "env://"

_log = logging.getLogger(__name__)


class RpcBackendOptions:
    """What any backend can be told. `rpc_timeout` in seconds, of a call that names none; 0 = none.

    Raises `TypeError` for a timeout that is no number.
    """

    def __init__(
        self, rpc_timeout: float = DEFAULT_RPC_TIMEOUT, init_method: str = DEFAULT_INIT_METHOD
    ) -> None:
        if isinstance(rpc_timeout, bool) or not isinstance(rpc_timeout, int | float):
            raise TypeError(
                f"{type(self).__name__}: incompatible constructor arguments: rpc_timeout is a number of seconds, "
                f"got {rpc_timeout!r}"
            )
        self.rpc_timeout = float(rpc_timeout)
        self.init_method = init_method

    def agent_options(self) -> AgentOptions:
        """What of this is the agent's."""
        return AgentOptions(rpc_timeout=self.rpc_timeout)


class TensorPipeRpcBackendOptions(RpcBackendOptions):
    """Of the backend that torch calls TENSORPIPE, which is this package here.

    `device_maps` is the callee's name -> this worker's device -> the callee's; `devices` are this worker's own.
    A device is an index of CUDA, a string or a `torch.device`. Raises `ValueError` for a map that is not one to
    one and for devices that are no accelerator's. `_transports` and `_channels` choose among TensorPipe's own:
    there are none here, and they have no effect.
    """

    def __init__(
        self,
        *,
        num_worker_threads: int = DEFAULT_NUM_WORKER_THREADS,
        rpc_timeout: float = DEFAULT_RPC_TIMEOUT,
        init_method: str = DEFAULT_INIT_METHOD,
        device_maps: Mapping[str, Mapping[Device, Device]] | None = None,
        devices: Sequence[Device] | None = None,
        _transports: Sequence[str] | None = None,
        _channels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rpc_timeout, init_method)
        self.num_worker_threads = num_worker_threads
        self.device_maps: dict[str, DeviceMap] = {
            to: as_device_map(device_map) for to, device_map in (device_maps or {}).items()
        }
        self.devices: list[torch.device] = as_devices(devices or ())
        if _transports or _channels:
            _log.info("TensorPipe's transports %s and channels %s are not used", _transports, _channels)

    def set_device_map(self, to: str, device_map: Mapping[Device, Device]) -> None:
        """Add to the map for `to`; raises `ValueError` where a device is mapped to another one already."""
        added = as_device_map(device_map)
        known = self.device_maps.get(to, {})
        for source, target in added.items():
            if known.get(source, target) != target:
                raise ValueError(
                    "`set_device_map` only supports 1-to-1 mapping, trying to map "
                    f"{source} to {target} and {known[source]}"
                )
        self.device_maps[to] = known | added

    def set_devices(self, devices: Sequence[Device]) -> None:
        """The devices of this worker that calls may use; raises `ValueError` for others than the accelerator's."""
        self.devices = as_devices(devices)

    def agent_options(self) -> AgentOptions:
        return AgentOptions(rpc_timeout=self.rpc_timeout, num_worker_threads=self.num_worker_threads)


def as_options(options: Any) -> Any:
    """`options`, or where they are torch's own object for TensorPipe, the same of ours.

    torch's are known by their attributes: their class is not there in a torch that was built without RPC.
    """
    if isinstance(options, RpcBackendOptions) or not _looks_like_tensorpipe(options):
        return options
    own = TensorPipeRpcBackendOptions(
        num_worker_threads=options.num_worker_threads,
        rpc_timeout=options.rpc_timeout,
        init_method=options.init_method,
        device_maps=options.device_maps,
    )
    own.devices = list(options.devices)
    return own


def agent_options(options: AgentOptions | RpcBackendOptions | None) -> AgentOptions:
    """What of a program's options is the agent's."""
    if isinstance(options, RpcBackendOptions):
        return options.agent_options()
    return options or AgentOptions()


def device_options(options: object) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    """The devices and the device maps of a program's options, as a member record carries them."""
    if not isinstance(options, TensorPipeRpcBackendOptions):
        return (), {}
    return tuple(str(device) for device in options.devices), maps_text(options.device_maps)


def _looks_like_tensorpipe(options: Any) -> bool:
    names = ("num_worker_threads", "rpc_timeout", "init_method", "device_maps", "devices")
    return all(hasattr(type(options), name) for name in names)

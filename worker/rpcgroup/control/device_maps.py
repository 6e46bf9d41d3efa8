"""What a worker finds in its environment of the group's device maps."""

from __future__ import annotations

import json

from rpcgroup import contract
from rpcgroup.control.model import RPCGroup

__all__ = ["device_maps_environment"]


def device_maps_environment(group: RPCGroup, role: str) -> dict[str, str]:
    """Nothing where no map is from that role. Equal maps are equal texts."""
    maps = {m.to: m.devices for m in group.spec.device_maps if m.from_ == role}
    return {contract.ENV_DEVICE_MAPS: json.dumps(maps, sort_keys=True)} if maps else {}

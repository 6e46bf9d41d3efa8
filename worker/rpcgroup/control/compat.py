"""What a program written for torch.distributed.rpc finds in its environment."""

from __future__ import annotations

from rpcgroup import contract
from rpcgroup.control.model import RPCGroup

__all__ = ["compat_environment"]


def compat_environment(group: RPCGroup, role: str, index: int) -> dict[str, str]:
    """Nothing unless the group asks for it. Ranks count through the roles in their order; a worker beyond its role's
    replicas, as in a rollout, gets a rank that nobody else has. Source: torchrun's RANK and WORLD_SIZE."""
    if group.spec.compat != "Torch":
        return {}
    sizes = {name: replicas for name, (replicas, _) in group.roles().items()}
    world_size = sum(sizes.values())
    names = list(sizes)
    place = names.index(role)
    rank = sum(sizes[name] for name in names[:place]) + index
    if index >= sizes[role]:
        rank = world_size + len(names) * (index - sizes[role]) + place
    return {contract.ENV_COMPAT: contract.COMPAT_TORCH, "RANK": str(rank), "WORLD_SIZE": str(world_size)}

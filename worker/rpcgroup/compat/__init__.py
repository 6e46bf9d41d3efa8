"""Programs written for `torch.distributed.rpc` run on this package as they are.

    import rpcgroup.compat
    rpcgroup.compat.install()

before or after the program has imported what it uses; or `rpcgroup exec -- python train.py`; or
`RPCGROUP_COMPAT=torch` in the environment. Here is the skin: modules in the shape of torch's, and what puts them
in the place of torch's.
"""

from __future__ import annotations

import importlib

__all__ = ["install", "uninstall"]


def install() -> None:
    """Let `torch.distributed.rpc` and `torch.distributed.autograd` be this package, in this process and in all
    Python processes that it starts.

    Every name of theirs that a loaded module holds is bound anew. A torch that was built without RPC has it then.
    Nothing happens where it is installed already.
    """
    # Imported here: a process that never imports torch pays nothing for this package's being there.
    importlib.import_module("torch")  # first: where RPCGROUP_COMPAT says so, its import installs already
    swap = importlib.import_module("rpcgroup.compat.swap")
    swap.install()


def uninstall() -> None:
    """Undo `install`; call it after `shutdown`. Nothing happens where it is not installed.

    A module that was imported in between and has taken a class that this package shows by its own name too, `RRef`
    for example, keeps it.
    """
    swap = importlib.import_module("rpcgroup.compat.swap")
    swap.uninstall()

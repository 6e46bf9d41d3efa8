"""Whether the suite runs on this package or on torch's own RPC, which shows what a torch passes by itself."""

from __future__ import annotations

import os

__all__ = ["ENV_STOCK", "swap"]

ENV_STOCK = "RPCGROUP_CONFORMANCE_STOCK"


def swap() -> None:
    if not os.environ.get(ENV_STOCK):
        from rpcgroup.compat import install

        install()

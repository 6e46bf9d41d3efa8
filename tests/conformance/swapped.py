"""What the suite runs on: this package or torch's own RPC, with the GPUs of the machine or with emulated ones."""

from __future__ import annotations

import os

__all__ = ["ENV_EMULATED", "ENV_STOCK", "swap"]

ENV_STOCK = "RPCGROUP_CONFORMANCE_STOCK"
ENV_EMULATED = "RPCGROUP_CONFORMANCE_EMULATED"


def swap() -> None:
    if os.environ.get(ENV_EMULATED):
        from tests.conformance.emulated import emulate

        emulate()
    if not os.environ.get(ENV_STOCK):
        from rpcgroup.compat import install

        install()
    if os.environ.get(ENV_EMULATED):
        from tests.conformance.emulated import put_our_futures

        put_our_futures()

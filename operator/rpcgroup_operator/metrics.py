"""What the operator tells Prometheus. Names and units as Prometheus wants them; see docs/operator.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

__all__ = ["Metrics"]


class Metrics:
    """One set for one operator; `serve` shows it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "rpcgroup_reconciles", "Reconciles that have ended.", ["result"], registry=self.registry
        )
        self.seconds = Histogram(
            "rpcgroup_reconcile_duration_seconds",
            "Of one reconcile of one group.",
            buckets=(0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
            registry=self.registry,
        )
        self.actions = Counter(
            "rpcgroup_actions", "What was done to pods and members.", ["action"], registry=self.registry
        )
        self.leading = Gauge(
            "rpcgroup_operator_leading", "1 while this replica reconciles.", registry=self.registry
        )
        self._groups = Gauge("rpcgroup_groups", "RPCGroups there are.", registry=self.registry)

    def count_groups(self, groups: Callable[[], int]) -> None:
        self._groups.set_function(groups)

    @contextmanager
    def reconcile(self) -> Iterator[None]:
        began = time.monotonic()
        result = "error"
        try:
            yield
            result = "success"
        finally:
            self.seconds.observe(time.monotonic() - began)
            self.reconciles.labels(result).inc()

    @contextmanager
    def serve(self, port: int) -> Iterator[None]:
        """`/metrics` on all addresses, by a thread of the library; ended with the block."""
        server, thread = start_http_server(port, registry=self.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

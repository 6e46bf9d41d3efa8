"""`server_process_global_profile`: a profile of what this process runs for the calls of others."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from torch.autograd import profiler_legacy
from torch.autograd.profiler_util import EventList

from rpcgroup.agent import serving
from rpcgroup.agent.recording import Events, Settings

__all__ = ["server_process_global_profile"]


class server_process_global_profile(profiler_legacy.profile):
    """As torch's legacy `profile`, with its arguments and results, but of every thread that runs a request: of those
    that begin and end while it is open. `process_global_function_events` has a list of events for each.

    Source: torch's `torch.distributed.rpc._server_process_global_profile`.
    """

    def __enter__(self) -> Any:
        if not self.enabled:
            return None
        if self.entered:
            raise RuntimeError("autograd profiler traces are not reentrant")
        self.entered = True
        self._serving = serving.begin(Settings(*[getattr(self, name) for name in Settings._fields]))
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> Any:
        if not self.enabled:
            return None
        requests = _on_one_clock(serving.end(self._serving))
        del self._serving
        self.process_global_function_events = requests
        self.function_events = EventList(
            list(itertools.chain.from_iterable(requests)),
            use_device="cuda" if self.use_cuda else None,
            profile_memory=self.profile_memory,
        )  # type: ignore[no-untyped-call]
        self.function_events._build_tree()  # type: ignore[no-untyped-call]
        return False


def _on_one_clock(requests: list[Events]) -> list[list[Any]]:
    """Each request's events, by the time since the first one's start; its own, for another profile may have it too."""
    if not requests:
        return []
    first = min(request.start for request in requests)
    result = []
    for start, events in requests:
        events = copy.deepcopy(events)
        for event in events:
            event.time_range.start += (start - first) / 1000
            event.time_range.end += (start - first) / 1000
        result.append(events)
    return result

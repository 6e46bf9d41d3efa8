"""A profile of all that a process runs for others, in whatever thread: torch's `_server_process_global_profile`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rpcgroup.agent.recording import Events, Settings, recorded

__all__ = ["Serving", "begin", "end", "run_served", "servings"]

servings: list[Serving] = []
"""Those that are open, the outermost first; while there is none, no call looks any further."""
_lock = threading.Lock()  # guards servings and what each has gathered


class Serving:
    """What ran for each request since `begin`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests: list[Events] = []


def begin(settings: Settings) -> Serving:
    serving = Serving(settings)
    with _lock:
        servings.append(serving)
    return serving


def end(serving: Serving) -> list[Events]:
    """A request that runs at this moment is not among them."""
    with _lock:
        servings.remove(serving)
        return serving.requests


def run_served(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call, and let every profile that is open before and after have what ran."""
    with _lock:
        open_before = list(servings)
    if not open_before:
        return call(*args, **kwargs)
    result, events = recorded(open_before[-1].settings, lambda: call(*args, **kwargs))
    with _lock:
        for serving in open_before:
            if serving in servings:
                serving.requests.append(events)
    return result

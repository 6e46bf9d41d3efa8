"""The swap itself: torch's modules for ours, and every name that somebody holds already.

What is changed is written down as it was, in `_changes`; `uninstall` goes back over that.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, NamedTuple

import torch
import torch.distributed

from rpcgroup.compat.alias import ALIASES, AliasFinder, own_name
from rpcgroup.contract import COMPAT_TORCH, ENV_COMPAT

__all__ = ["install", "uninstall"]

MISSING: Final = object()
IN_C: Final = {
    "torch._C._distributed_rpc": "rpcgroup.compat.rpc",
    "torch._C._distributed_autograd": "rpcgroup.compat.autograd",
}
"""torch's modules in C++, whose names are bound anew one by one, or which are made where torch has none."""
SWITCHES: Final = ("_rpc_init", "_dist_autograd_init", "_faulty_agent_init")
"""Of `torch._C`: modules of torch's that are imported later ask by these whether there is RPC."""
STOCK: Final = (*ALIASES, *IN_C)


class _Change(NamedTuple):
    """A name as it was: in a module, in `sys.modules` or in the environment."""

    names: Any
    name: str
    before: Any

    def undo(self) -> None:
        if self.before is MISSING:
            self.names.pop(self.name, None)
        else:
            self.names[self.name] = self.before


_lock = threading.RLock()  # guards the two below, while names are changed
_changes: list[_Change] | None = None
_finder: Final = AliasFinder()


def install() -> None:
    global _changes
    with _lock:
        if _changes is not None:
            return
        _changes = []
        try:
            _install()
        except BaseException:
            uninstall()
            raise


def uninstall() -> None:
    global _changes
    with _lock:
        changes, _changes = _changes, None
        if changes is None:
            return
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        for change in reversed(changes):
            change.undo()
        _bind_back()


def _install() -> None:
    had_rpc = all(hasattr(torch._C, switch) for switch in SWITCHES[:2])
    stock = {name: module for name, module in list(sys.modules.items()) if _own(name) is not None}
    replacements = _replacements(stock)
    for name, module in stock.items():
        if name not in IN_C:
            _set(sys.modules, name, _own(name))
            _take_over_reducers(module)
    for name, ours in ALIASES.items():
        module = importlib.import_module(ours)
        _set(sys.modules, name, module)
        parent, _, attribute = name.rpartition(".")
        if parent in sys.modules:
            _set(vars(sys.modules[parent]), attribute, module)
    sys.meta_path.insert(0, _finder)
    _bind(replacements, {id(module) for module in stock.values()})
    _bind_in_c()
    if not had_rpc:
        _make_up_for_a_torch_without_rpc()
    _set(os.environ, ENV_COMPAT, COMPAT_TORCH)


def _own(name: str) -> ModuleType | None:
    """Ours for torch's module of that name; of its internal ones not every one has one."""
    ours = own_name(name) or IN_C.get(name)
    if ours is None or importlib.util.find_spec(ours) is None:
        return None
    return importlib.import_module(ours)


def _set(names: Any, name: str, value: Any) -> None:
    assert _changes is not None
    _changes.append(_Change(names, name, names.get(name, MISSING)))
    names[name] = value


def _replacements(stock: dict[str, ModuleType]) -> dict[int, Any]:
    """Ours for each object of torch's RPC, by the object's id."""
    found: dict[int, Any] = {}
    for name, module in stock.items():
        ours = _own(name)
        if name not in IN_C:
            found[id(module)] = ours
        for key, value in vars(module).items():
            own = getattr(ours, key, MISSING)
            if own is not MISSING and not key.startswith("__") and _is_stock(value):
                found[id(value)] = own
    return found


def _is_stock(value: Any) -> bool:
    """Whether torch's RPC defines it, or it is an instance of what that defines."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str):
        home = type(value).__module__
    return any(home == name or home.startswith(f"{name}.") for name in STOCK)


def _namespaces(skip: set[int]) -> Iterator[dict[str, Any]]:
    """Of all loaded modules, but for those and for this package's."""
    for name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", None)
        if type(names) is not dict or id(module) in skip or name.partition(".")[0] == "rpcgroup":
            continue
        if not str(names.get("__name__", "")).startswith("rpcgroup."):
            yield names


def _bind(replacements: dict[int, Any], skip: set[int]) -> None:
    for names in _namespaces(skip):
        for key, value in list(names.items()):
            own = replacements.get(id(value), MISSING)
            if own is not MISSING and own is not value:
                _set(names, key, own)


def _bind_back() -> None:
    """Names that were bound since, to what only the skin defines."""
    theirs: dict[int, Any] = {}
    for name, ours in ALIASES.items():
        if not ours.startswith(f"{__package__}."):
            continue
        stock = sys.modules.get(name)
        for module in [m for n, m in list(sys.modules.items()) if n == ours or n.startswith(f"{ours}.")]:
            there = sys.modules.get(name + module.__name__.removeprefix(ours), stock)
            if there is None:
                continue
            theirs[id(module)] = there
            for key, value in vars(module).items():
                if getattr(value, "__module__", None) == module.__name__ and hasattr(there, key):
                    theirs[id(value)] = getattr(there, key)
    for names in _namespaces(set()):
        for key, value in list(names.items()):
            if id(value) in theirs:
                names[key] = theirs[id(value)]


def _bind_in_c() -> None:
    for name, ours in IN_C.items():
        names = {key: value for key, value in vars(importlib.import_module(ours)).items() if key[:2] != "__"}
        module = sys.modules.get(name)
        if module is None:
            module = ModuleType(name)
            vars(module).update(names)
            _set(sys.modules, name, module)
            _set(vars(torch._C), name.rpartition(".")[2], module)
            continue
        for key in list(vars(module)):
            if key in names:
                _set(vars(module), key, names[key])


def _take_over_reducers(stock: ModuleType) -> None:
    """What was registered with torch's pickler is registered with ours."""
    theirs = vars(stock).get("_internal_rpc_pickler")
    if theirs is None:
        return
    from rpcgroup.compat.rpc.internal import _internal_rpc_pickler

    for kind, reducer in theirs._class_reducer_dict.items():
        _internal_rpc_pickler._register_reducer(kind, reducer)


def _make_up_for_a_torch_without_rpc() -> None:
    """What torch's own modules leave out where there is no RPC when they are imported."""
    from rpcgroup.compat import without_rpc

    for switch in SWITCHES:
        _set(vars(torch._C), switch, without_rpc.switch)
    for name, key, value in without_rpc.names():
        _set(vars(sys.modules[name]), key, value)

"""Run by Python itself when a process starts with `RPCGROUP_COMPAT=torch`: installs once torch has been imported.

`rpcgroup_compat.pth`, which the wheel puts beside the package, imports this. So children are installed however
they are started: by spawn, by a forkserver, as a subprocess. Imports nothing but the standard library.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from rpcgroup.contract import COMPAT_TORCH, ENV_COMPAT

__all__ = ["install_with_torch"]


class _AfterTorch(MetaPathFinder):
    """Finds torch as it would be found otherwise, and installs when it has run: until then it stays in its place."""

    def __init__(self) -> None:
        self._search = threading.local()
        """`inside` while this thread asks the other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch" or getattr(self._search, "inside", False):
            return None
        self._search.inside = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._search.inside = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Any, finder: _AfterTorch) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # what else is asked of a loader, `get_source` for example

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        from rpcgroup.compat import install

        install()


def install_with_torch() -> None:
    """Now where torch is loaded, else as soon as it is."""
    if "torch" in sys.modules:
        from rpcgroup.compat import install

        install()
    else:
        sys.meta_path.insert(0, _AfterTorch())


if os.environ.get(ENV_COMPAT) == COMPAT_TORCH:
    install_with_torch()

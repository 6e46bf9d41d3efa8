"""The public names of every public module are pinned in `exports.txt`; `make exports` accepts a change."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "worker" / "rpcgroup"
PINNED = Path(__file__).with_name("exports.txt")


def public_modules() -> list[str]:
    paths = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    modules = (path.parent if path.name == "__init__" else path for path in paths)
    return sorted(".".join(m.parts) for m in modules if not any(part.startswith("_") for part in m.parts))


def exported(module: str) -> list[str]:
    """`__all__`, or, for a module of constants (`contract`), every public name it assigns or defines."""
    names = getattr(importlib.import_module(module), "__all__", None)
    return sorted(names if names is not None else _defined(module))


def _defined(module: str) -> list[str]:
    path = PACKAGE.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: list[str] = []
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.append(node.name)
    return [name for name in names if not name.startswith("_")]


def lines(module: str) -> list[str]:
    return [f"{module}.{name}" for name in exported(module)]


def pinned() -> list[str]:
    return PINNED.read_text().split()


@pytest.mark.parametrize("module", public_modules())
def test_public_names_are_pinned(module: str) -> None:
    held = [line for line in pinned() if line.rpartition(".")[0] == module]
    assert lines(module) == held, "if the change is meant: make exports, and say it in CHANGELOG.md"


def test_every_name_exists() -> None:
    for module in public_modules():
        missing = [name for name in exported(module) if not hasattr(importlib.import_module(module), name)]
        assert not missing, f"{module} exports what it has not: {missing}"


def test_no_module_is_pinned_that_is_gone() -> None:
    assert {line.rpartition(".")[0] for line in pinned()} <= set(public_modules())


if __name__ == "__main__":
    PINNED.write_text("".join(f"{line}\n" for module in public_modules() for line in lines(module)))
    print(f"{PINNED.relative_to(ROOT)} written")

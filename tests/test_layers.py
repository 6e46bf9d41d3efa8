"""The layers that import-linter cannot see: parts of foreign packages, and what an import brings along."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "worker" / "rpcgroup"
BELOW_AGENT = ("contract.py", "errors.py", "wire", "membership", "transport", "rref", "control")


def imported(path: Path) -> Iterator[str]:
    """The dotted names a file imports, wherever in it; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(*rooms: str) -> list[Path]:
    """A room is a module or a package of `rpcgroup`, written as its path."""
    paths = (PACKAGE / room for room in rooms)
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", sources(*BELOW_AGENT), ids=name)
def test_nothing_below_the_agent_knows_torch_distributed(path: Path) -> None:
    assert not [name for name in imported(path) if name.startswith("torch.distributed")]


@pytest.mark.parametrize("path", sources("."), ids=name)
def test_only_torchs_public_api_is_used(path: Path) -> None:
    """Torch builds without RPC must work."""
    private = ("torch._C._distributed_rpc", "torch._C._rpc")
    assert not [name for name in imported(path) if name.startswith(private)]


def test_importing_the_package_brings_no_extra_along() -> None:
    extras = {"pydantic", "yaml", "rich", "kopf", "kubernetes"}
    code = f"import rpcgroup, sys; print(*sorted({extras} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == []

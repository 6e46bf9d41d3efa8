from __future__ import annotations

import subprocess
import sys

import pytest

from rpcgroup import cli
from rpcgroup.cli import COMMANDS, main
from rpcgroup.errors import GroupError, ManifestError


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.argv[0] = 'rpcgroup'\n{before}\nfrom rpcgroup.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_names_every_command_and_imports_none() -> None:
    heavy = ("torch", "grpc", "pydantic", "rich", "yaml")
    before = f"import atexit; atexit.register(lambda: print('loaded', set({heavy}) & set(sys.modules)))"
    answer = run("--help", before=before)
    assert answer.returncode == 0
    assert all(f"  {name} " in answer.stdout for name in COMMANDS)
    assert "loaded set()" in answer.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    answer = run(command, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"Usage: rpcgroup {command}")


def test_without_the_extra_a_command_names_it() -> None:
    answer = run("run", "-f", "x.yaml", before="sys.modules['pydantic'] = None")
    assert answer.returncode == 1
    assert answer.stderr == "error: this command needs pydantic: pip install 'rpcgroup[local]'\n"


@pytest.mark.parametrize("command", ["status", "serve", "doctor", "scale"])
def test_these_commands_need_no_extra(command: str) -> None:
    before = "sys.modules.update(dict.fromkeys(['pydantic', 'yaml', 'rich']))"
    assert run(command, "--help", before=before).returncode == 0


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ManifestError("a: 1\nb: 2"), 2, "error: a: 1\nerror: b: 2\n"),
        (GroupError("it runs already"), 1, "error: it runs already\n"),
    ],
)
def test_an_error_is_lines_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    text: str,
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "commands", fail)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    assert capsys.readouterr().err == text

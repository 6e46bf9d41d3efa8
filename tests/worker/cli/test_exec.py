from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def rpcgroup(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'rpcgroup'; from rpcgroup.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "exec", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_program_has_its_arguments_and_the_exit_code_is_its_own() -> None:
    program = "import os, sys; print(sys.argv[1:], os.environ['RPCGROUP_COMPAT']); sys.exit(7)"
    answer = rpcgroup("--", sys.executable, "-c", program, "--lr", "0.1", "--help")
    assert answer.returncode == 7
    assert answer.stdout == "['--lr', '0.1', '--help'] torch\n"


def test_without_the_dashes_the_programs_options_are_the_programs() -> None:
    answer = rpcgroup(sys.executable, "-c", "import sys; print(sys.argv[1:])", "--lr=1")
    assert answer.stdout == "['--lr=1']\n"


@pytest.mark.parametrize(
    ("program", "code"), [("no-such-program", 127), ("/no/such", 127), ("/etc/hostname", 126)]
)
def test_what_cannot_be_run_is_an_error_in_a_line(program: str, code: int) -> None:
    answer = rpcgroup("--", program)
    assert answer.returncode == code
    assert answer.stderr.startswith("error: ")
    assert program in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_script_without_its_interpreter_is_not_said_to_be_missing(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    answer = rpcgroup("--", str(script))
    assert (answer.returncode, answer.stderr) == (
        127,
        f"error: no program {str(script)!r} to run, or no interpreter for it\n",
    )


def test_nothing_to_run_is_a_usage_error() -> None:
    answer = rpcgroup()
    assert answer.returncode == 2
    assert "PROGRAM" in answer.stderr

from __future__ import annotations

import json

from rpcgroup.testing.program_lines import program_lines


def test_the_innermost_lines_of_the_program_without_the_librarys() -> None:
    def outer() -> str:
        got: list[str] = []
        json.dumps(object(), default=lambda _: got.append(program_lines()))
        return got[0]

    lines = outer().removeprefix("at ").split(" < ")
    assert all(line.startswith("testing/test_program_lines.py:") for line in lines)
    assert len(lines) == 3

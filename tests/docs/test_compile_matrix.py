"""docs/compile-matrix.md tells of the operators that there are, and of the targets that the command knows."""

from __future__ import annotations

import re
from pathlib import Path

from flagrelease.bench.compile.target import TARGETS
from flagrelease.engine.kernels.operators import OPERATORS

PAGE = (Path(__file__).parents[2] / "docs" / "compile-matrix.md").read_text(encoding="utf-8")


def test_every_operator_is_in_the_table_or_named_as_left_out() -> None:
    table = {row[0] for row in re.findall(r"^\| (\w+) \|( [^|]*\|){3,}$", PAGE, re.MULTILINE)} - {"operator"}
    left_out = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("launch no kernel of these") :].split("\n\n")[0]))
    assert table - {"arrange_experts"} <= set(OPERATORS)
    assert set(OPERATORS) == (table | left_out) - {"arrange_experts"}
    assert not table & left_out


def test_targets_of_the_table_are_those_of_the_command_or_named_as_not_compiled() -> None:
    for target in TARGETS:
        assert f"{target}" in PAGE, target

"""Planted defects on the small trained model: what retrieval finds of each, as docs/validation-defects.md says."""

from __future__ import annotations

from pathlib import Path

import pytest
from defective_contexts import (
    ContextDefect,
    answer_ledgers,
    dropped_at_borders,
    recent_entries,
    short_window_in_decode,
)
from scripted_contexts import exams_of, scripted

from flagrelease.records.rules import LongContextRules
from flagrelease.validate.exams.side import Side
from flagrelease.validate.long_context.figures import LongContextFigures
from flagrelease.validate.long_context.verdict import long_context_stage

RULES = LongContextRules(form="ledger", lengths=(80, 152, 224), depths=(0, 25, 50, 75, 100), items=10, max_tokens=32)
FEW = LongContextRules(form="ledger", lengths=(152,), depths=(0,), items=8, max_tokens=16, margin=45)
PAGE = Path(__file__).parents[3] / "docs" / "validation-defects.md"
MATRIX = [
    (ContextDefect("none: BF16 instead of native numerics", numerics="bf16"), "pass"),
    (ContextDefect("none: prompts in chunks of 62 tokens", chunk=62), "pass"),
    (ContextDefect("indexer prefers recent keys", recent_entries), "fail"),
    (
        ContextDefect("compressor drops what is before a chunk's border, 62 tokens", dropped_at_borders, chunk=62),
        "fail",
    ),
    (
        ContextDefect("compressor drops what is before a chunk's border, 64 tokens", dropped_at_borders, chunk=64),
        "fail",
    ),
    (
        ContextDefect("window one too short", short_window_in_decode, window=True),
        "pass",
    ),  # one key of 32: seen elsewhere
]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Side]:
    return answer_ledgers(RULES, ContextDefect("native"), tmp_path_factory.mktemp("native"))


def share(figures: LongContextFigures, length: int) -> list[int]:
    return [cell.chip for cell in figures.cells if cell.length == length]


@pytest.mark.slow
@pytest.mark.parametrize(("defect", "verdict"), MATRIX, ids=[defect.name for defect, _ in MATRIX])
def test_the_page_says_what_retrieval_finds(
    defect: ContextDefect, verdict: str, native: dict[int, Side], tmp_path: Path
) -> None:
    stage = long_context_stage(RULES, native, answer_ledgers(RULES, defect, tmp_path))
    figures = LongContextFigures.model_validate(stage.figures, strict=False)
    for length in RULES.lengths:
        print(defect.name, length, share(figures, length))
    assert figures.native.score == 100
    assert stage.verdict == verdict, stage.detail
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {defect.name} |")]
    assert row.split(" | ")[1].startswith("caught") == (verdict == "fail")


def test_an_indexer_that_prefers_recent_keys_loses_the_early_entries(tmp_path: Path) -> None:
    """The quickest of the matrix. That the sound model finds them all is what the slow tests show."""
    sound = scripted(exams_of(FEW), lambda *_: "right")
    spoilt = answer_ledgers(FEW, ContextDefect("recent", recent_entries), tmp_path)
    stage = long_context_stage(FEW, sound, spoilt)
    assert LongContextFigures.model_validate(stage.figures, strict=False).cells[0].chip == 0
    assert stage.verdict == "fail"

"""`figures` of the long-context stage: what the page draws, and what a reader can compute again."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CellFigures(_Strict):
    """One length and one depth; None stands for all of them: a row or a column of the picture.

    Attributes:
        depth: percent of the register's entries before the one with the answer.
        items: questions; `native` and `chip` are right answers to them.
        lost, gained: questions that the native side alone, and the chip alone, answered rightly.
        p: of the one-sided sign test of `lost` against `gained`.
        verdict: `fail` if the chip lost these questions beyond chance (Holm over all rows, columns and cells);
            `not-informative` where the native side is right too seldom for any loss to show.
        native_invalid, chip_invalid, native_truncated, chip_truncated: answers without a number, and cut off.
    """

    length: int | None
    depth: float | None
    items: int
    native: int
    chip: int
    lost: int
    gained: int
    p: float
    verdict: Literal["pass", "fail", "not-informative"]
    native_invalid: int
    chip_invalid: int
    native_truncated: int
    chip_truncated: int


class OverallFigures(_Strict):
    """The test over all questions, in points of 100.

    Attributes:
        could_fail: whether a port that answers nothing would have failed it; else it tests nothing.
        further_items: more in a cell that would decide, if they went on as these; None where it is decided, or where no
            number would.
    """

    difference: float
    se: float
    lower: float
    upper: float
    margin: float
    alpha: float
    critical: float
    verdict: Literal["pass", "fail", "cannot-tell"]
    could_fail: bool
    further_items: int | None


class SideFigures(_Strict):
    """One side: right answers, answers without a number and cut off, in points of 100; and what it cost, in tokens."""

    stack: str
    score: float
    invalid: float
    truncated: float
    prompt_tokens: int
    generated_tokens: int


class LongContextFigures(_Strict):
    """Of the stage. `cells` has every length and depth; `lengths` and `depths` are its rows and columns."""

    form: str
    hops: int
    items: int
    native: SideFigures
    chip: SideFigures
    overall: OverallFigures
    cells: tuple[CellFigures, ...]
    lengths: tuple[CellFigures, ...]
    depths: tuple[CellFigures, ...]
    obstacles: tuple[str, ...]

"""The verdict on long contexts: what passes, what fails, what is not told, and how often chance decides."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scripted_contexts import RULES, Oracle, Script, exams_of, scripted

from flagrelease.errors import ResourceError, VerificationError
from flagrelease.records.report import Stage
from flagrelease.validate.exams.side import Side
from flagrelease.validate.exams.sitting import sitting
from flagrelease.validate.long_context.figures import LongContextFigures
from flagrelease.validate.long_context.items import ContextExam
from flagrelease.validate.long_context.verdict import long_context_stage
from flagrelease.validate.statistics.decision import SamplingPlan, decide
from flagrelease.validate.statistics.exact import holm, only_lost
from flagrelease.validate.statistics.paired import pair_draws


@pytest.fixture(scope="module")
def exams() -> dict[int, ContextExam]:
    return exams_of(RULES)


def right(length: int, depth: float, number: int) -> str:
    return "right"


def judge(exams: dict[int, ContextExam], chip: Script, native: Script = right, **changes: object) -> Stage:
    rules = RULES.model_copy(update=changes)
    return long_context_stage(rules, scripted(exams, native, "native"), scripted(exams, chip, "chip"))


def recent_only(length: int, depth: float, number: int) -> str:
    """An indexer that prefers recent keys: whatever stands early in a long prompt is lost."""
    return "wrong" if length == 152 and depth == 0 else "right"


def everywhere(share: float) -> Script:
    def script(length: int, depth: float, number: int) -> str:
        return "wrong" if random.Random(f"{length} {depth} {number}").random() < share else "right"

    return script


CASES = [
    ("equal", right, right, {}, "pass", "no length or depth is lost"),
    ("one cell", recent_only, right, {"margin": 30.0}, "fail", "depth 0%, 152 tokens (0 of 20, native 20)"),
    ("a few everywhere", everywhere(0.25), right, {}, "fail", "worse by more than 5 points|Lost beyond chance"),
    ("one of many", lambda *at: "wrong" if at == (80, 0, 3) else "right", right, {}, "pass", "99.2% of the"),
    ("some", everywhere(0.05), right, {}, "cannot-tell", "more in each cell would decide"),
    ("native nothing", right, lambda *at: "wrong", {}, "not-informative", "nothing was tested"),
    ("both nothing", lambda *at: "wrong", lambda *at: "wrong", {}, "not-informative", "nothing was tested"),
    (
        "native cut off",
        lambda *at: "cut",
        lambda *at: "cut",
        {},
        "cannot-tell",
        "100.00% of the native answers were cut",
    ),
    ("chip cut off", everywhere(0), lambda *at: "right", {"most_truncated": 0.0}, "pass", ""),
    ("chip a little", lambda *at: "cut" if at[2] == 7 else "right", right, {"margin": 20.0}, "cannot-tell", "5.00% of"),
    ("chip cut off all", lambda *at: "cut", right, {}, "fail", "Lost beyond chance"),
]


@pytest.mark.parametrize(("name", "chip", "native", "changes", "verdict", "said"), CASES, ids=[c[0] for c in CASES])
def test_the_verdict(
    name: str, chip: Script, native: Script, changes: dict[str, object], verdict: str, said: str,
    exams: dict[int, ContextExam],
) -> None:  # fmt: skip
    stage = judge(exams, chip, native, **changes)
    assert stage.verdict == verdict, stage.detail
    assert any(part in stage.detail for part in said.split("|")), stage.detail
    assert bool(stage.proves) == (verdict == "pass")
    LongContextFigures.model_validate_json(stage.model_dump_json(include={"figures"})[11:-1])


def test_the_figures_are_those_of_the_answers(exams: dict[int, ContextExam]) -> None:
    figures = LongContextFigures.model_validate(judge(exams, recent_only).figures, strict=False)
    assert [(cell.length, cell.depth, cell.items) for cell in figures.cells] == [
        (length, depth, 20) for length in (80, 152) for depth in (0, 50, 100)
    ]
    assert [(row.length, row.chip, row.items) for row in figures.lengths] == [(80, 60, 60), (152, 40, 60)]
    assert [(column.depth, column.lost) for column in figures.depths] == [(0, 20), (50, 0), (100, 0)]
    regions = (*figures.cells, *figures.lengths, *figures.depths)
    assert [(c.length, c.depth) for c in regions if c.verdict == "fail"] == [(152, 0), (152, None), (None, 0)]
    assert figures.native.score == 100
    assert figures.chip.score == pytest.approx(100 * 100 / 120)
    assert figures.native.prompt_tokens == 60 * (80 + 152)
    assert figures.native.generated_tokens == 120 * 9


def test_a_cell_that_the_native_side_fails_says_nothing(exams: dict[int, ContextExam]) -> None:
    """A model that cannot read so far is no measure there, and the reader is told."""
    deaf: Script = lambda length, depth, number: "wrong" if (length, depth) == (152, 50) else "right"  # noqa: E731
    stage = judge(exams, deaf, deaf, margin=10.0)
    assert stage.verdict == "pass"
    assert any("1 of 6 cells" in line and "depth 50%, 152 tokens" in line for line in stage.leaves_open)


def test_sides_that_were_asked_other_things_are_refused(exams: dict[int, ContextExam]) -> None:
    native = scripted(exams, right)
    other = exams_of(RULES.model_copy(update={"depths": (0, 40, 100)}))
    with pytest.raises(VerificationError, match="sat different exams"):
        long_context_stage(RULES, native, scripted(other, right))
    with pytest.raises(VerificationError, match="no answers for 152 tokens"):
        long_context_stage(RULES, native, {80: native[80]})
    hot = exams_of(RULES.model_copy(update={"temperature": 1.0}))
    with pytest.raises(VerificationError, match="another temperature"):
        long_context_stage(RULES, native, scripted(hot, right))


def test_a_sitting_goes_on_where_it_was_cut(exams: dict[int, ContextExam], tmp_path: Path) -> None:
    journal = tmp_path / "80.jsonl"

    def sit(answerer: Oracle) -> Side:
        with sitting(exams[80], answerer, "chip", journal, lambda *_: None, None) as sat:
            return sat.ask_all(1)

    with pytest.raises(KeyboardInterrupt):
        sit(Oracle(exams[80], interrupt_after=17))
    answerer = Oracle(exams[80], frozenset({"0/3"}))
    side = sit(answerer)
    assert len(answerer.asked) == 60 - 17
    assert side.scores().mean() in (1.0, 59 / 60)  # 0/3 may have been answered before the cut
    with (
        pytest.raises(ResourceError, match="begun with another subject"),
        sitting(exams[80], answerer, "another", journal, lambda *_: None, None),
    ):
        pass


def test_the_sign_test_is_the_binomial_one() -> None:
    for lost in range(12):
        for gained in range(12):
            expected = stats.binomtest(gained, lost + gained, 0.5, "less").pvalue if lost + gained else 1.0
            assert only_lost(lost, gained) == pytest.approx(expected)


def test_holm_lets_fall_what_the_published_example_does() -> None:
    """Holm's procedure by its definition: sorted p against alpha / m, alpha / (m - 1), ...; stop at the first above."""
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([0.06], 0.05) == [False]
    assert holm([], 0.05) == []


@pytest.mark.parametrize(
    ("n", "native", "margin"), [(60, 1.0, 0.05), (240, 1.0, 0.05), (240, 0.8, 0.05), (120, 0.5, 0.1)]
)
def test_a_port_that_is_worse_by_the_margin_passes_no_more_often_than_alpha(
    n: int, native: float, margin: float
) -> None:
    """4,000 exams each, of questions that both sides answer independently; scipy has no such test to compare with."""
    rng = np.random.default_rng(n)
    plan, passes, runs = SamplingPlan(margin, 0.05, (1,)), 0, 4_000
    first = rng.random((runs, n)) < native
    second = rng.random((runs, n)) < native - margin
    for ours, theirs in zip(first, second, strict=True):
        seen = pair_draws(ours[:, None].astype(float), theirs[:, None].astype(float))
        passes += decide(plan, seen).verdict == "pass"
    assert passes / runs <= 0.067


def test_a_difference_of_single_answers_has_the_error_of_its_items() -> None:
    native = np.array([[1.0], [1.0], [0.0], [1.0]])
    chip = np.array([[0.0], [1.0], [1.0], [1.0]])
    seen = pair_draws(native, chip)
    assert seen.difference == 0
    assert seen.se == pytest.approx(stats.sem([-1, 0, 1, 0]))
    with pytest.raises(ValueError, match="shapes"):
        pair_draws(np.ones((4, 2)), np.ones((4, 2)))

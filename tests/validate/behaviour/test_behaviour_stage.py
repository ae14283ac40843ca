"""The verdict on behaviour, its interval, and the release's own examples of its chat format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagrelease.errors import UsageError, VerificationError
from flagrelease.records.recipe import read_recipe
from flagrelease.records.report import Stage
from flagrelease.records.rules import BehaviourRules
from flagrelease.validate.behaviour.answers import Behaviour, Reply
from flagrelease.validate.behaviour.golden import check_golden_pairs
from flagrelease.validate.behaviour.prompts import prompts_of, prompts_sha256
from flagrelease.validate.behaviour.rates import excess, judge_rate, needed_for_zero
from flagrelease.validate.behaviour.stage import behaviour_stage

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "encoding"
RECIPES = sorted([*ROOT.glob("recipes/*.yaml"), ROOT / "examples" / "demo.yaml"])


# Newcombe (1998), Interval estimation for the difference between independent proportions, table II, method 10.
@pytest.mark.parametrize(
    ("port", "native", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_the_interval_is_newcombes(port: tuple[int, int], native: tuple[int, int], low: float, high: float) -> None:
    found = excess(port, native, alpha=0.025)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert found.difference == pytest.approx(port[0] / port[1] - native[0] / native[1])


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1, 0.3])
def test_how_many_answers_are_needed_where_nothing_goes_wrong(margin: float) -> None:
    n = needed_for_zero(margin, 0.05)
    assert excess((0, n), (0, n), 0.05).verdict(margin) == "pass"
    assert excess((0, n - 1), (0, n - 1), 0.05).verdict(margin) == "cannot-tell"


def side(count: int = 80, **signs: Callable[[int], Any]) -> Behaviour:
    """Each kind of prompt `count` times; a sign is a field and what it is in the nth answer."""
    answers = []
    for wish in ("text", "tool", "json"):
        for n in range(count):
            plain: dict[str, Any] = {
                "prompt": f"{wish}-{n}", "repeat": 0, "wish": wish, "prompt_sha256": "a" * 64, "prompt_tokens": 9,
                "tokens": 20, "finish": "stop", "loops": False, "broken": False, "granted": True,
            }  # fmt: skip
            answers.append(Reply(**plain | {name: sign(n) for name, sign in signs.items()}))
    return Behaviour(
        subject="source x", stack="a machine", prompts_sha256=prompts_sha256(), rules=BehaviourRules(repeats=1),
        answers=tuple(answers),
    )  # fmt: skip


@pytest.fixture
def release(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "encoding" / "tests")
    shutil.copy(GOLDEN.parent / "configs" / "flash.json", tmp_path / "config.json")
    return tmp_path


def broken_rates(stage: Stage) -> set[Any]:
    rates: Any = stage.figures["rates"]
    return {rate["name"] for rate in rates if rate["verdict"] == "fail"}


def test_equal_sides_pass(release: Path) -> None:
    stage = behaviour_stage(release, side(), side())
    assert stage.verdict == "pass"
    assert "4 of its examples" in stage.proves[1]


def test_a_few_more_faults_than_native_pass(release: Path) -> None:
    port, native = side(loops=lambda n: n % 40 == 0), side(loops=lambda n: n % 80 == 7)
    assert behaviour_stage(release, port, native).verdict == "pass"


@pytest.mark.parametrize(
    ("signs", "name"),
    [
        ({"loops": lambda n: n % 3 == 0}, "ends in a loop"),
        ({"finish": lambda n: "length" if n % 3 == 0 else "stop"}, "cut off at the limit of tokens"),
        ({"broken": lambda n: n % 3 == 0}, "breaks the chat format"),
        ({"granted": lambda n: n % 3 != 0}, "no valid tool call"),
    ],
)
def test_a_port_that_misbehaves_fails(release: Path, signs: dict[str, Callable[[int], Any]], name: str) -> None:
    stage = behaviour_stage(release, side(**signs), side())
    assert stage.verdict == "fail"
    assert name in broken_rates(stage)
    assert name in stage.detail
    assert behaviour_stage(release, side(**signs), side(**signs)).verdict != "fail", "as bad as native is aligned"


@pytest.mark.parametrize(
    ("rules", "signs", "said"),
    [
        ({"margin": 90}, {}, "would have failed: ends in a loop (native 0 of 6)"),
        ({}, {"granted": lambda n: False}, "no valid tool call (native 80 of 80)"),
        ({"margin": 40}, {"loops": lambda n: n % 5 > 0}, "ends in a loop (native 18 of 24)"),
    ],
    ids=["few answers and a wide margin", "both sides fail everything", "native fails nearly everything"],
)
def test_a_rate_that_could_not_fail_is_not_informative(
    release: Path, rules: dict[str, Any], signs: dict[str, Callable[[int], Any]], said: str
) -> None:
    """Equal sides: each of these was a green pass before."""
    count = 2 if rules.get("margin") == 90 else 8 if rules else 80
    asked = BehaviourRules(repeats=1, **rules)
    equal = side(count, **signs).model_copy(update={"rules": asked})
    stage = behaviour_stage(release, equal, equal)
    assert stage.verdict == "not-informative"
    assert said in stage.detail
    assert stage.proves == ()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_rules_ask_enough_for_their_margin(path: Path) -> None:
    """Where native makes no fault, a port that makes every one fails, and an equal one passes."""
    rules = read_recipe(path).validation.behaviour
    for wish in rules.wishes:
        count = sum(prompt.wish == wish for prompt in prompts_of(rules)) * rules.repeats
        margin = rules.margin / 100
        assert judge_rate((0, count), (0, count), margin, rules.alpha) == "pass"
        assert judge_rate((count, count), (0, count), margin, rules.alpha) == "fail"


def test_only_what_was_asked_is_judged(release: Path) -> None:
    """A model that was never taught tools is asked for text alone, and the stage says something about that."""
    rules = BehaviourRules(wishes=("text",), repeats=1)
    assert {prompt.wish for prompt in prompts_of(rules)} == {"text"}
    untaught = side(granted=lambda n: True)
    answers = tuple(answer for answer in untaught.answers if answer.wish == "text")
    equal = untaught.model_copy(update={"rules": rules, "answers": answers})
    stage = behaviour_stage(release, equal, equal)
    assert stage.verdict == "pass"
    assert "no valid tool call" not in str(stage.figures["rates"])
    assert "tool" not in " ".join(stage.proves)


def test_too_few_answers_cannot_tell(release: Path) -> None:
    stage = behaviour_stage(release, side(8), side(8))
    assert stage.verdict == "cannot-tell"
    assert "At least 25 of each kind" in stage.detail  # 1.645 squared times 0.9 / 0.1, and one


def test_other_tokens_fail(release: Path) -> None:
    stage = behaviour_stage(release, side(prompt_sha256=lambda n: ("b" if n == 3 else "a") * 64), side())
    assert stage.verdict == "fail"
    assert stage.figures["token_mismatches"] == ["text-3", "tool-3", "json-3"]


def test_sides_that_were_asked_differently_are_not_compared(release: Path) -> None:
    native = side()
    others = [{"rules": BehaviourRules(repeats=1, seed=1)}, {"prompts_sha256": "0" * 64}]
    for change in others:
        with pytest.raises(VerificationError, match="other prompts or rules"):
            behaviour_stage(release, side(), native.model_copy(update=change))


def test_the_releases_own_examples(release: Path) -> None:
    assert check_golden_pairs(release).pairs == 4
    assert check_golden_pairs(release).differing == ()
    shutil.rmtree(release / "encoding")
    assert check_golden_pairs(release).pairs == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test_output_2.txt", "<｜begin▁of▁sentence｜>something else"), ("test_output_2.txt", None),
        ("test_input_2.json", "{"), ("test_input_2.json", "7"), ("test_input_2.json", '[{"role": "wizard"}]'),
        ("test_input_2.json", "{}"), ("test_input_2.json", "[7]"),
    ],
)  # fmt: skip
def test_an_example_that_is_not_reproduced_fails(release: Path, name: str, content: str | None) -> None:
    path = release / "encoding" / "tests" / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="utf-8")
    assert check_golden_pairs(release).differing == ("test_input_2.json",)
    stage = behaviour_stage(release, side(), side())
    assert stage.verdict == "fail"
    assert "test_input_2.json" in stage.detail


def test_recorded_behaviour_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "behaviour.json"
    with pytest.raises(UsageError, match="no recorded behaviour"):
        Behaviour.read(path)
    side(3).save(path)
    assert Behaviour.read(path) == side(3)
    path.write_text(path.read_text().replace('"loops": false', '"loops": "no"', 1))
    with pytest.raises(VerificationError, match=r"answers\.0\.loops"):
        Behaviour.read(path)

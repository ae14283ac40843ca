"""What the report's page draws of a benchmark: numbers in points of 100, items by id, nothing of the questions."""

from __future__ import annotations

from collections import Counter

import numpy as np
from pydantic import JsonValue

from flagrelease.validate.exams.side import AnsweredItem, Side
from flagrelease.validate.statistics.decision import Decision, SamplingPlan, chances
from flagrelease.validate.statistics.exact import mcnemar, permutation
from flagrelease.validate.statistics.intervals import bootstrap_mean
from flagrelease.validate.statistics.paired import Paired

Figures = dict[str, JsonValue]
_BOOTSTRAP_SEED = 0
_CONFIDENCE = 0.95


def of_one_side(chip: Side) -> Figures:
    """Keys: `sides.chip` and `items`, as in `of_two_sides`."""
    right = chip.scores().sum(axis=1)
    return {
        "sides": {"chip": _side(chip)},
        "items": [{"id": item.id, "chip": _item(item, int(n))} for item, n in zip(chip.items, right, strict=True)],
    }


def of_two_sides(plan: SamplingPlan, seen: Paired, decision: Decision, native: Side, chip: Side) -> Figures:
    """The comparison, of sides with the repeats of one look.

    Keys:
        test: difference, se, se_within (without the rule's floor), lower, upper, margin, look, looks, critical,
            verdict, further_planned, further_needed, equivalent (the upper bound is below the margin, too),
            variance (v_w, a fraction).
        chances: of each verdict by the true drop, with the variance that was seen.
        mcnemar: items that one side alone solved (more than half of its answers right), and the exact p.
        permutation_p: of any difference, labels exchanged within items.
        over_items: bootstrap interval of the difference on other such items.
        flips: ids of the items whose majority answer changed.
        sides: of native and chip: subject, stack, score, run_sd, rates of invalid, truncated, refused, undecided and
            alike, tokens.
        items: id, and for each side right, invalid, truncated answers and mean tokens.
    """
    scores = native.scores(), chip.scores()
    rows: list[JsonValue] = []
    for ours, theirs, n, c in zip(native.items, chip.items, scores[0].sum(axis=1), scores[1].sum(axis=1), strict=True):
        rows.append({"id": ours.id, "native": _item(ours, int(n)), "chip": _item(theirs, int(c))})
    solved = scores[0].mean(axis=1) > 0.5, scores[1].mean(axis=1) > 0.5
    only = int((solved[0] & ~solved[1]).sum()), int((solved[1] & ~solved[0]).sum())
    low, high = bootstrap_mean(scores[1].mean(axis=1) - scores[0].mean(axis=1), _CONFIDENCE, _BOOTSTRAP_SEED)
    pairs = zip(native.items, chip.items, strict=True)
    return {
        "test": _test(plan, seen, decision),
        "chances": _chances(plan, seen),
        "mcnemar": {"only_native": only[0], "only_chip": only[1], "p": mcnemar(*only)},
        "permutation_p": permutation(*scores),
        "over_items": {"low": 100 * low, "high": 100 * high, "confidence": _CONFIDENCE},
        "flips": [ours.id for ours, theirs in pairs if _majority(ours) != _majority(theirs)],
        "sides": {
            "native": _side(native) | {"run_sd": 100 * seen.native_run_sd},
            "chip": _side(chip) | {"run_sd": 100 * seen.chip_run_sd},
        },
        "items": rows,
    }


def _test(plan: SamplingPlan, seen: Paired, decision: Decision) -> Figures:
    return {
        "difference": 100 * seen.difference,
        "se": 100 * decision.se,
        "se_within": 100 * seen.se,
        "lower": 100 * decision.lower,
        "upper": 100 * decision.upper,
        "margin": 100 * plan.margin,
        "alpha": plan.alpha,
        "verdict": decision.verdict,
        "equivalent": decision.verdict == "pass" and decision.upper < plan.margin,
        "look": decision.look,
        "looks": list(plan.looks),
        "critical": decision.critical,
        "further_planned": decision.further_planned,
        "further_needed": decision.further_needed,
        "variance": seen.variance,
    }


def _chances(plan: SamplingPlan, seen: Paired) -> list[JsonValue]:
    rows: list[JsonValue] = []
    for share in (0.0, 0.5, 1.0, 1.5, 2.0):
        ends = chances(plan, share * plan.margin, seen.variance, seen.n)
        drop = 100 * share * plan.margin
        rows.append({"drop": drop, "pass": ends.passes, "fail": ends.fails, "cannot-tell": ends.cannot_tell})
    return rows


def _side(side: Side) -> Figures:
    tokens = side.tokens()
    return {
        "subject": side.subject,
        "stack": side.stack,
        "score": 100 * float(side.scores().mean()),
        "invalid": 100 * side.invalid_rate(),
        "truncated": 100 * side.truncated_rate(),
        "refused": 100 * side.refused_rate(),
        "undecided": 100 * side.undecided_rate(),
        "alike": 100 * side.alike_rate(),
        "tokens": {
            "total": int(tokens.sum()),
            "mean": float(tokens.mean()),
            "quantiles": {str(q): float(np.quantile(tokens, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        },
    }


def _item(item: AnsweredItem, right: int) -> Figures:
    return {
        "right": right,
        "invalid": sum(answer.value is None for answer in item.answers),
        "truncated": sum(answer.finish == "length" for answer in item.answers),
        "tokens": sum(answer.tokens for answer in item.answers) / len(item.answers),
    }


def _majority(item: AnsweredItem) -> str | None:
    """The answer given in more than half of the repeats."""
    (value, count), *_ = Counter(answer.value for answer in item.answers).most_common(1)
    return value if 2 * count > len(item.answers) else None

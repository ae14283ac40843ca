"""Which limits decide for which numerics, and how far they are widened for a port that rounds in its own way."""

from __future__ import annotations

import pytest
import torch
from engine_checkpoint import small_config
from pydantic import ValidationError

from flagrelease.engine.numerics import Numerics, NumericsName, choose_numerics
from flagrelease.model.v4.config import parse_config
from flagrelease.records.rules import LogitsRules
from flagrelease.validate.logits.comparison import deciding_limits

RULES = LogitsRules()


def numerics(name: NumericsName) -> Numerics:
    return choose_numerics(name, torch.bfloat16, parse_config(small_config(), "a test"))


@pytest.mark.parametrize(
    ("name", "references"),
    [
        ("bf16", {"oracle", "native"}), ("native", {"native"}), ("fp8", {"native"}),
        ("int8", {"oracle"}), ("fp8-channel", {"oracle"}), ("mxfp8", {"oracle"}),
    ],
)  # fmt: skip
def test_each_port_is_judged_by_the_run_that_computes_like_it(name: NumericsName, references: set[str]) -> None:
    """INT8 numerics were judged against the native run, where FP8's rounding hid every planted defect."""
    limits = deciding_limits(numerics(name), 0.02, RULES)
    assert set(limits) == references
    assert numerics(name).reference in references


def test_limits_are_widened_by_the_cost_of_native_rounding() -> None:
    """The numbers are worked out by hand: 0.5 x 0.016 is four times 0.002, and the root of 4 is 2."""
    limits = deciding_limits(numerics("int8"), 0.016, RULES)["oracle"]
    assert limits.mean_kl == pytest.approx(0.008)
    assert limits.tail_kl == pytest.approx(0.4)
    assert limits.tail_share == RULES.oracle.tail_share
    assert limits.top1 == pytest.approx(0.94)
    assert limits.top1_clear == pytest.approx(0.998)
    assert limits.perplexity == pytest.approx(0.012)
    assert limits.floors == RULES.oracle.floors


def test_limits_are_never_narrower_than_those_of_a_port_that_rounds_nothing() -> None:
    assert deciding_limits(numerics("int8"), 1e-4, RULES)["oracle"] == RULES.oracle
    assert deciding_limits(numerics("bf16"), 0.02, RULES)["oracle"] == RULES.oracle


def test_a_recipe_that_names_one_numerics_keeps_the_other_shares() -> None:
    given = LogitsRules.model_validate({"own_rounding": {"int8": 0.9}})
    assert given.own_rounding == {**RULES.own_rounding, "int8": 0.9}
    for wrong in ({"fp4": 1}, {"int8": 0}):
        with pytest.raises(ValidationError):
            LogitsRules.model_validate({"own_rounding": wrong})

"""FlagGems' kernels, as the provider calls them, against the definitions. Needs flag_gems and a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_cases import CASES, Case, flash_cases
from kernel_comparison import assert_same

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.operators import OPERATORS, Operators
from flagrelease.engine.kernels.provider import load_provider

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]  # flag_gems warns when it is imported

OF_FLAG_GEMS = {"act_quant", "fp8_linear", "hadamard", "hc_post", "hc_split_sinkhorn", "sparse_attention"}


@pytest.fixture
def flag_gems(gpu: torch.device) -> Operators:
    pytest.importorskip("flag_gems")  # it looks for a device when it is imported
    return load_provider("flag_gems", gpu)


def test_the_report_says_which_operators_are_flag_gems(flag_gems: Operators) -> None:
    report = flag_gems.describe()
    assert {name for name in OPERATORS if "flag_gems_operators" in report[name]} == OF_FLAG_GEMS


@pytest.mark.parametrize(
    "case",
    [c for c in (*CASES, *flash_cases()) if c.operator in OF_FLAG_GEMS],
    ids=lambda c: f"{c.operator}: {c.label}",
)
def test_flag_gems_gives_what_the_definition_gives(
    case: Case, flag_gems: Operators, gpu: torch.device, record_property: Callable[[str, object], None]
) -> None:
    arguments = case.arguments(gpu)
    expected = getattr(reference, case.operator)(*arguments)
    actual = getattr(flag_gems, case.operator)(*arguments)
    record_property("relative_error", assert_same(actual, expected, case.tolerance))

"""The second encoder against the rules in plain Python (fractions), ml_dtypes and torch."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import plain_rows
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagrelease.formats.formats import FP8_CHANNEL, INT8
from flagrelease.verify.encoder import RowRule, encode_rows, in_order, is_bf16, nearest_e4m3_codes

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E4M3 = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64).tolist()
RULES = [
    RowRule(INT8, "power-of-two"),
    RowRule(INT8, "absmax"),
    RowRule(INT8, "best"),
    RowRule(INT8, "best", bf16=True),
    RowRule(INT8, "absmax", bf16=True),
    RowRule(FP8_CHANNEL, "power-of-two"),
    RowRule(FP8_CHANNEL, "absmax"),
]
float32_scales = st.floats(width=32, min_value=0, max_value=2.0**100)
power_scales = st.integers(-127, 100).map(lambda k: 2.0**k)
subnormal_scales = st.integers(1, 2**23).map(lambda n: math.ldexp(n, -149))


def signed(magnitudes: list[float]) -> st.SearchStrategy[float]:
    return st.tuples(st.sampled_from(magnitudes), st.sampled_from([1.0, -1.0])).map(lambda pair: pair[0] * pair[1])


def groups(codes: list[float], scales: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    """One to three groups of codes, each times a scale."""
    group = st.tuples(st.lists(signed(codes), min_size=1, max_size=6), scales)
    return st.lists(group.map(lambda g: [code * g[1] for code in g[0]]), min_size=1, max_size=3).map(
        lambda parts: [value for part in parts for value in part]
    )


@st.composite
def near_scales(draw: st.DrawFn) -> list[float]:
    """Groups whose scales are a few powers of two apart, as trained weights have them."""
    base = draw(st.integers(-60, 40))
    return draw(groups(E2M1, st.integers(0, 9).map(lambda k: 2.0 ** (base - k))))


@st.composite
def on_the_edge(draw: st.DrawFn) -> list[float]:
    """A largest magnitude of exactly 127 or 448 times a power of two, or a bit beside it, and multiples of halves."""
    k = draw(st.integers(-100, 80))
    top = draw(st.sampled_from([127.0, 448.0, 127 + 2.0**-20, 448 + 2.0**-20, 127 - 2.0**-20, 126.5, 127.5]))
    halves = draw(st.lists(st.integers(-252, 252).map(lambda n: n / 2), max_size=6))
    return [math.ldexp(value, k) for value in [top, *halves]]


rows = st.one_of(
    near_scales(),
    on_the_edge(),
    groups(E2M1, power_scales),
    groups(E4M3, power_scales),
    groups(E4M3, float32_scales),
    groups(E4M3, subnormal_scales),
    st.just([0.0, -0.0, 0.0]),
)


def check(x: list[float], rule: RowRule) -> None:
    found = encode_rows(np.array([x]), rule)
    wanted = plain_rows.encode_row(x, rule.format.name, rule.scale, rule.bf16)
    assert found.scales.tolist() == [wanted.scale]
    assert found.codes[0].tolist() == wanted.codes
    assert found.errors[0].tolist() == wanted.errors
    # a scale is stored as float32, or as BF16
    assert np.float32(found.scales[0]) == found.scales[0]
    assert is_bf16(found.scales)[0] or not rule.bf16


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(x=rows)
@settings(deadline=None, max_examples=150)
def test_a_row_is_what_the_rule_says(rule: RowRule, x: list[float]) -> None:
    check(x, rule)


@pytest.mark.parametrize("bf16", [False, True])
@given(x=rows)
@settings(deadline=None, max_examples=12)
def test_the_least_squares_search_is_what_the_rule_says(bf16: bool, x: list[float]) -> None:
    check(x, RowRule(INT8, "mse", bf16))


@pytest.mark.parametrize("rule", [*RULES, RowRule(INT8, "mse")], ids=str)
def test_rows_do_not_depend_on_their_neighbours(rule: RowRule) -> None:
    x = np.random.default_rng(0).standard_normal((9, 40)) * np.exp2(np.arange(9) * 7 - 30)[:, None]
    x[4] = 0
    together = encode_rows(x, rule)
    for row in range(9):
        alone = encode_rows(x[row : row + 1], rule)
        assert alone.scales[0] == together.scales[row]
        np.testing.assert_array_equal(alone.codes[0], together.codes[row])
        np.testing.assert_array_equal(alone.errors[0], together.errors[row])


def test_by_hand() -> None:
    """127 = 127 x 1 is a power of two's; 128 is not 128 x 1, since codes end at 127; 3 and 96 share scale 1."""

    def of(*x: float, rule: str = "best") -> tuple[float, list[int]]:
        found = encode_rows(np.array([x]), RowRule(INT8, rule))
        return found.scales[0], found.codes.view(np.int8)[0].tolist()

    assert of(127.0, -3.0) == (1.0, [127, -3])
    assert of(128.0, 2.0) == (2.0, [64, 1])
    assert of(96.0, 3.0) == (1.0, [96, 3])
    assert of(0.5, 1.5, 2.5, 127.0, rule="power-of-two") == (1.0, [0, 2, 2, 127])  # ties to even
    assert of(0.0, -0.0) == (1.0, [0, 0])
    # 254 and 1: under 2 the 1 is a tie that becomes 0, under 254/127 = 2 as well: the same sum, so the power of two
    assert of(254.0, 1.0) == (2.0, [127, 0])
    # absmax 130/127 is nearer than 2 for 65 and 33
    assert of(130.0, 65.0, 33.0, rule="best")[0] == np.float32(130 / 127)
    assert of(130.0, 65.0, 33.0, rule="power-of-two")[0] == 2.0


def test_a_scale_that_float32_cannot_hold_is_infinite() -> None:
    x = np.array([[448 * 2.0**127, 1.0]])
    for rule in (RowRule(INT8, "power-of-two"), RowRule(INT8, "absmax"), RowRule(INT8, "best", bf16=True)):
        assert encode_rows(x, rule).scales.tolist() == [np.inf]


def test_e4m3_rounding_is_that_of_torch() -> None:
    """Every value that lies on, between or beside E4M3 numbers, up to 448, against torch's cast."""
    numbers = np.array(E4M3)
    between = (numbers[1:] + numbers[:-1]) / 2
    near = np.concatenate([numbers, between, np.nextafter(between, 0), np.nextafter(between, 500), [2.0**-11, 1e-40]])
    values = np.concatenate([near, -near])
    # torch casts through float32, which would round the neighbours of a tie onto the tie
    held = values[values.astype(np.float32) == values]
    np.testing.assert_array_equal(
        nearest_e4m3_codes(held), torch.from_numpy(held).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    )
    nearest = [min(range(0x7F), key=lambda c: (abs(E4M3[c] - abs(v)), c & 1)) for v in values]
    np.testing.assert_array_equal(nearest_e4m3_codes(values) & 0x7F, nearest)
    assert nearest_e4m3_codes(np.array([449.0, -1e9, -0.0])).tolist() == [0x7E, 0xFE, 0x80]


def test_sums_run_in_the_order_of_the_elements() -> None:
    """numpy's `sum` adds pairwise, which gives another float64."""
    terms = np.random.default_rng(1).random((3, 4097)) ** 8
    for row, total in zip(terms, in_order(terms), strict=True):
        plain = 0.0
        for term in row.tolist():
            plain += term
        assert total == plain
    assert (in_order(terms) != terms.sum(axis=1)).any()

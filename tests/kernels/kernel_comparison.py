"""When two results of an operator count as the same: one table by dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Largest ||actual - expected|| / ||expected||; no single element may be off by more than 16 times that of the largest.
TOLERANCE = {
    # Sums of up to 16,384 FP32 terms in another order (their error grows like the root of the count times 2^-24),
    # matrix units that truncate when they add (4e-6 at 4,096 terms on an H100), exp and division right to 2 units in
    # the last place.
    torch.float32: 1e-5,
    # Nearly the same FP32 number rounded once: a few per cent of the elements fall on the other side of a tie and are
    # 2^-8 off, the others are equal.
    torch.bfloat16: 1e-3,
    # The definition computes with float64 inputs in float64; a formula in the tests does too.
    torch.float64: 1e-12,
}
# What an operator may lose beyond that, at the places where it rounds inside.
INSIDE = {
    # exp(z - m) is BF16, taken against the running instead of the final maximum: one BF16 rounding.
    "sparse_attention": {torch.bfloat16: 2**-8},
    "shared_attention": {torch.bfloat16: 2**-8},
    # The hidden layer is BF16, then E4M3: where one number falls on the other side of a tie, it moves by 2^-4.
    "moe_experts": {torch.float32: 2**-7},
    "moe_experts_32": {torch.float32: 2**-7},
    # Hopper's matrix unit adds E4M3 products with about 14 bits (1.2e-4 on an H100; upstream's kernel uses it too), so
    # more numbers fall on the other side of a tie.
    "fp8_linear": {torch.float32: 2**-12, torch.bfloat16: 2**-9},
    "fp8_linear_parts": {torch.float32: 2**-12},
    "row_linear": {torch.float32: 2**-12, torch.bfloat16: 2**-9},
}
# Operators whose result is a decision or a copy: a scale and a rounded value are right or wrong, however small. So is
# an INT32 sum, and its products with two scales have one order.
EXACT = {
    "act_quant", "act_quant_roundtrip", "fp4_act_quant", "fp4_act_quant_roundtrip", "token_quant", "INT32 sums",
    "mx_act_quant_roundtrip", "embedding", "engram_rows",
    "fp4_keys_roundtrip",
}  # fmt: skip


def assert_same(actual: object, expected: object, operator: str = "") -> float:
    """Compare tensors or tuples of them: shape, dtype, then values within the table; integers and FP8 codes exactly.

    Returns the largest relative error.
    """
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        return max(assert_same(a, e, operator) for a, e in zip(actual, expected, strict=True))
    assert isinstance(actual, Tensor)
    assert isinstance(expected, Tensor)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if operator in EXACT and expected.dtype in TOLERANCE:
        assert torch.equal(actual, expected)  # 0 and -0 are the same value
        return 0.0
    if expected.dtype not in TOLERANCE:
        assert torch.equal(_raw(actual), _raw(expected)), (
            f"{int((_raw(actual) != _raw(expected)).sum())} elements differ"
        )
        return 0.0
    tolerance = INSIDE.get(operator, {}).get(expected.dtype, TOLERANCE[expected.dtype])
    error, largest = differences(actual, expected)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.1e}"
    assert largest <= 16 * tolerance, f"one element is off by {largest:.2e} of the largest"
    return error


def differences(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """(relative norm of the difference, largest difference over the largest element); NaN counts as infinite."""
    a, e = actual.double(), expected.double()
    norm = (a - e).norm() / e.norm().clamp(min=1e-300)
    largest = (a - e).abs().max() / e.abs().max().clamp(min=1e-300) if e.numel() else torch.zeros(())
    return float(norm.nan_to_num(torch.inf, torch.inf)), float(largest.nan_to_num(torch.inf, torch.inf))


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors are filled with NaN (integers with their maximum), so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _raw(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.element_size() == 1 else x

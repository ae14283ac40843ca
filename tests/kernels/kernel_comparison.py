"""When two results of an operator count as the same: one table by dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Largest ||actual - expected|| / ||expected||. No single element may be off by more than 16 times that of the largest.
TOLERANCE = {
    # Sums of up to 16,384 FP32 terms in another order (their error grows like the root of the count times 2^-24), and
    # a GPU's exp and division, which are right to 2 units in the last place.
    torch.float32: 3e-6,
    # Nearly the same FP32 number rounded once: a few per cent of the elements fall on the other side of a tie and are
    # 2^-8 off, the others are equal.
    torch.bfloat16: 1e-3,
    # The definition computes with float64 inputs in float64; a formula in the tests does too.
    torch.float64: 1e-12,
}
# Operators that round inside, at places where order of summation decides: P against the running instead of the final
# maximum (attention), and the experts' hidden layer (BF16, then FP8). One BF16 rounding, 2^-8, covers both.
ROUNDS_INSIDE = {"sparse_attention": 2**-8, "moe_experts": 2**-8}

# Operators whose result is a decision or a copy: a scale and a rounded value are right or wrong, however small.
EXACT = {"act_quant", "act_quant_roundtrip", "fp4_act_quant", "fp4_act_quant_roundtrip", "embedding"}


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
    tolerance = TOLERANCE[expected.dtype]
    if expected.dtype == torch.bfloat16 or (operator == "moe_experts" and expected.dtype == torch.float32):
        tolerance = ROUNDS_INSIDE.get(operator, tolerance)
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

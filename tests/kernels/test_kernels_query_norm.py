"""The norm of the query heads under native numerics: DeepSeek's form, bit for bit.

Their model.py writes it on a BF16 tensor, `q *= torch.rsqrt(q.square().mean(-1, keepdim=True) + self.eps)`, so every
step is rounded to BF16. It was FP32 inside here, which is 3e-3 in mean KL on random weights.

Equality is exact, although sums are made in another order: 512 squares of eight significant bits are added in FP32
nearly without rounding, and what is left would have to lie at a tie of BF16.
"""
# ruff: noqa: N803  (kernels' dimensions)

import ml_dtypes
import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.attention.decode_attention import _queries
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.triton_operators import TritonOperators

EPS = 1e-6


def heads(device: torch.device, rows: int = 300, columns: int = 512) -> Tensor:
    """Rows of magnitudes from 2^-12, where eps counts, to 2^12."""
    magnitude = torch.exp2(torch.linspace(-12, 12, rows))[:, None]
    return (torch.randn(rows, columns) * magnitude).bfloat16().to(device)


def in_deepseeks_form(q: Tensor) -> Tensor:
    """Their line, [rows, columns]. torch's CPU rounds a reciprocal root in BF16 once in whole vectors of 16 or 32, as
    a GPU does, but twice in what is left of a tensor: so the rows are filled up.
    """
    rows = len(q)
    q = torch.cat((q, q.new_ones(-rows % 64, q.shape[1])))
    q *= torch.rsqrt(q.square().mean(-1, keepdim=True) + EPS)
    return q[:rows]


def by_ml_dtypes(q: Tensor) -> Tensor:
    """The same, by another library's BF16: one named array a rounding, the mean exact in float64 before its own."""

    def bf16(x: object) -> np.ndarray:
        return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16)

    def wide(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64)

    x = bf16(q.float().cpu().numpy())
    square = bf16(wide(x) ** 2)
    mean = bf16(wide(square).mean(-1, keepdims=True))
    shifted = bf16(wide(mean) + EPS)
    factor = bf16(1 / np.sqrt(wide(shifted)))
    return torch.from_numpy(wide(bf16(wide(x) * wide(factor)))).bfloat16().to(q.device)


@pytest.mark.parametrize("columns", [64, 96, 512])
def test_the_definition_is_deepseeks_form(columns: int, device: torch.device) -> None:
    q = heads(device, columns=columns)
    stepwise = reference.rms_norm(q, None, EPS, stepwise=True)
    assert torch.equal(stepwise, by_ml_dtypes(q))
    # A CPU rounds eps to BF16 before it adds it, which shows where eps counts: the first rows.
    first = 0 if device.type != "cpu" else 110
    assert torch.equal(stepwise[first:], in_deepseeks_form(q[first:]))
    # What bf16 and fp8 numerics keep is another function: many elements differ.
    once = reference.rms_norm(q, None, EPS)
    assert (once != stepwise).float().mean() > 0.2
    assert ((once - stepwise).float().norm() / once.float().norm()) < 2**-7


@pytest.mark.parametrize("columns", [64, 96, 512])
def test_the_kernel_gives_the_same_bits(columns: int, device: torch.device) -> None:
    q = heads(device, columns=columns)
    assert torch.equal(TritonOperators.rms_norm(q, None, EPS, stepwise=True), by_ml_dtypes(q))


@pytest.mark.parametrize("operators", [reference, TritonOperators])
def test_a_norm_with_a_weight_has_no_steps(operators: object, device: torch.device) -> None:
    q = heads(device, 2)
    with pytest.raises(ValueError, match="without a weight"):
        operators.rms_norm(q, torch.ones(512, device=device), EPS, stepwise=True)  # type: ignore[attr-defined]


@jit
def _store_queries(
    q_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    y_ptr: tl.tensor,
    eps: tl.tensor,
    H: tl.tensor,
    STEPWISE: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
) -> None:
    h, pair = tl.arange(0, BLOCK), tl.arange(0, D // 2)
    cos, sin = tl.load(cos_ptr + pair), tl.load(sin_ptr + pair)
    y = _queries(q_ptr + h * D, h < H, cos, sin, eps, tl.bfloat16, STEPWISE, BLOCK, D)
    tl.store(y_ptr + h[:, None] * D + tl.arange(0, D)[None, :], y, mask=(h < H)[:, None])


@pytest.mark.parametrize("stepwise", [True, False])
def test_the_fused_attention_of_decoding_norms_its_queries_alike(stepwise: bool, device: torch.device) -> None:
    """Angles of 0 and pi / 2 turn without rounding, so that the norm's bits can be seen."""
    q = heads(device, 20, 128)
    turned = torch.arange(64, device=device) % 3 == 0
    cos, sin = (~turned).float(), turned.float()
    y = torch.empty_like(q)
    _store_queries[(1,)](q, cos, sin, y, EPS, 20, STEPWISE=stepwise, BLOCK=32, D=128)
    expected = by_ml_dtypes(q) if stepwise else reference.rms_norm(q, None, EPS)
    expected = reference.apply_rope(expected, cos, sin)
    if stepwise:
        assert torch.equal(y, expected)
    else:  # one FP32 sum in another order, rounded once: a few elements fall on the other side of a tie
        assert (y != expected).float().mean() < 0.01

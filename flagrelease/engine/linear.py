"""Linear layers: a stored weight, and the rounding of what goes into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight [N, K], in FP8 codes with scales or plain. `quantise`: its input is rounded to FP8, 1x128, first.

    A plain weight with a rounded input is the native computation on a BF16 release: the same numbers are multiplied.
    """

    weight: Tensor
    scale: Tensor | None
    quantise: bool


def project(ops: Operators, x: Tensor, *linears: Linear, out_dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """`x` [.., K] through linears that share it, rounded once for all of them; each result is [.., N].

    `out_dtype` is x's unless given: partial sums that ranks add up are wanted in FP32.
    """
    out_dtype = out_dtype or x.dtype
    if not linears[0].quantise:
        return tuple(ops.linear(x, linear.weight, out_dtype) for linear in linears)
    if linears[0].scale is None:
        rounded = ops.act_quant_roundtrip(x)
        return tuple(ops.linear(rounded, linear.weight, out_dtype) for linear in linears)
    codes, scales = ops.act_quant(x)
    return tuple(_fp8(ops, codes, scales, linear, out_dtype) for linear in linears)


def _fp8(ops: Operators, codes: Tensor, scales: Tensor, linear: Linear, out_dtype: torch.dtype) -> Tensor:
    assert linear.scale is not None, "weights that share an input are stored alike"
    return ops.fp8_linear(codes, scales, linear.weight, linear.scale, out_dtype)

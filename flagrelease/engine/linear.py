"""Linear layers: a weight as it is held while the model runs, and how it is multiplied."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.reference.quantisation import decode
from flagrelease.engine.schemes import Plain, Rounded, Scheme, as_bytes
from flagrelease.errors import UsageError


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight [N, K], in codes with scales or plain, and its scheme. `name`: of the weight, for errors."""

    weight: Tensor
    scale: Tensor | None
    scheme: Scheme
    name: str

    def round(self, ops: Operators, x: Tensor) -> Rounded:
        """x [.., K] as this layer takes it."""
        return self.scheme.round(ops, x)

    def take(self, ops: Operators, plain: Tensor, codes: Tensor | None, scales: Tensor | None) -> Rounded:
        """What an operator before this layer left, which rounds by itself if the scheme is `fused`."""
        return Rounded(plain, codes, scales) if self.scheme.fused else self.round(ops, plain)


def join(first: Linear, second: Linear) -> tuple[Linear, Linear, Linear]:
    """Two linears of one input as one, whose rows are the first's, then the second's; and both as views of it.

    Where only one is stored in blocks of FP8, it is decoded to the other's dtype, so that both are plain.

    Raises:
        ValueError: the first has rows that are not whole blocks of scales.
        UsageError: one input, but two ways to round it.
    """
    if first.scheme.fused != second.scheme.fused:
        first, second = _as_plain(first, second.weight.dtype), _as_plain(second, first.weight.dtype)
    if first.scheme != second.scheme:
        raise UsageError(
            f"tensors {first.name!r} and {second.name!r} have one input and are stored in different formats, which "
            f"would round it in two ways; --numerics bf16 decodes both"
        )
    rows, per_scale = first.weight.shape[0], first.scheme.rows_per_scale
    weight = torch.cat((as_bytes(first.weight), as_bytes(second.weight))).view(first.weight.dtype)
    scale: Tensor | None = None
    if first.scale is not None and second.scale is not None:
        if rows % per_scale:
            raise ValueError(f"{rows} rows are not whole blocks of {per_scale}")
        scale = torch.cat((as_bytes(first.scale), as_bytes(second.scale))).view(first.scale.dtype)
    blocks = rows // per_scale
    return (
        replace(first, weight=weight, scale=scale),
        replace(first, weight=weight[:rows], scale=None if scale is None else scale[:blocks]),
        replace(second, weight=weight[rows:], scale=None if scale is None else scale[blocks:]),
    )


def _as_plain(linear: Linear, dtype: torch.dtype) -> Linear:
    if not linear.scheme.fused:
        return linear
    return Linear(decode(linear.weight, linear.scale, dtype), None, Plain(rounds=True), linear.name)


def project(ops: Operators, x: Tensor, *linears: Linear, out_dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """`x` [.., K] through linears that share it, rounded once for all of them; each result is [.., N].

    `out_dtype` is x's unless given: partial sums that ranks add up are wanted in FP32.
    """
    return project_rounded(ops, linears[0].round(ops, x), *linears, out_dtype=out_dtype)


def project_rounded(
    ops: Operators, x: Rounded, *linears: Linear, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Like `project`, of an activation that is rounded already."""
    out_dtype = out_dtype or x.plain.dtype
    return tuple(each.scheme.product(ops, x, each.weight, each.scale, out_dtype) for each in linears)


def project_parts(ops: Operators, x: Rounded, linear: Linear) -> Tensor:
    """x [B, K] through a linear: FP32 parts [S, B, N], to be added up."""
    return linear.scheme.parts(ops, x, linear.weight, linear.scale)


def project_into(ops: Operators, x: Rounded, linear: Linear, out: Tensor) -> None:
    """x [B, K] through a linear, written to `out` [B, N]."""
    linear.scheme.product(ops, x, linear.weight, linear.scale, out.dtype, out)

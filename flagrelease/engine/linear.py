"""Linear layers: a stored weight, and the rounding of what goes into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.reference.quantisation import decode_fp8
from flagrelease.engine.kernels.weights import FP8_BLOCK


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight [N, K], in FP8 codes with scales or plain. `quantise`: its input is rounded to FP8, 1x128, first.

    A plain weight with a rounded input is the native computation on a BF16 release: the same numbers are multiplied.
    """

    weight: Tensor
    scale: Tensor | None
    quantise: bool

    @property
    def takes_codes(self) -> bool:
        """Whether products take the input as FP8 codes."""
        return self.quantise and self.scale is not None


class Rounded(NamedTuple):
    """An activation [B, K], and its FP8 codes and scales where the layers that it goes into take them."""

    plain: Tensor
    codes: Tensor | None = None
    scales: Tensor | None = None

    @classmethod
    def of(cls, ops: Operators, x: Tensor, linear: Linear) -> Rounded:
        """`x` as `linear` takes it."""
        return cls(x, *ops.act_quant(x)) if linear.takes_codes else cls(x)

    @classmethod
    def stack(cls, parts: list[Rounded]) -> Rounded:
        """Rows of several, one below the other."""
        return cls(*(_stack([part[n] for part in parts]) for n in range(3))) if len(parts) > 1 else parts[0]


def _stack(parts: list[Tensor | None]) -> Any:
    there = [part for part in parts if part is not None]
    return torch.cat([_bytes(part) for part in there]).view(there[0].dtype) if there else None


def join(first: Linear, second: Linear) -> tuple[Linear, Linear, Linear]:
    """Two linears of one input as one, whose rows are the first's, then the second's; and both as views of it.

    Where only one is stored in codes, it is decoded to the other's dtype, so that both are plain.

    Raises:
        ValueError: the first has rows that are not whole blocks of scales.
    """
    if (first.scale is None) != (second.scale is None):
        first, second = _as_plain(first, second.weight.dtype), _as_plain(second, first.weight.dtype)
    rows = first.weight.shape[0]
    weight = torch.cat((_bytes(first.weight), _bytes(second.weight))).view(first.weight.dtype)
    scale: Tensor | None = None
    if first.scale is not None and second.scale is not None:
        if rows % FP8_BLOCK:
            raise ValueError(f"{rows} rows are not whole blocks of {FP8_BLOCK}")
        scale = torch.cat((_bytes(first.scale), _bytes(second.scale))).view(first.scale.dtype)
    blocks = rows // FP8_BLOCK
    return (
        Linear(weight, scale, first.quantise),
        Linear(weight[:rows], None if scale is None else scale[:blocks], first.quantise),
        Linear(weight[rows:], None if scale is None else scale[blocks:], second.quantise),
    )


def _as_plain(linear: Linear, dtype: torch.dtype) -> Linear:
    if linear.scale is None:
        return linear
    weight = decode_fp8(linear.weight, linear.scale, dtype, (FP8_BLOCK, FP8_BLOCK))
    return Linear(weight, None, linear.quantise)


def project(ops: Operators, x: Tensor, *linears: Linear, out_dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """`x` [.., K] through linears that share it, rounded once for all of them; each result is [.., N].

    `out_dtype` is x's unless given: partial sums that ranks add up are wanted in FP32.
    """
    return project_rounded(ops, Rounded.of(ops, x, linears[0]), *linears, out_dtype=out_dtype)


def project_rounded(
    ops: Operators, x: Rounded, *linears: Linear, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Like `project`, of an activation whose codes are there already."""
    out_dtype = out_dtype or x.plain.dtype
    if not linears[0].takes_codes:
        plain = _plain(ops, x, linears[0])
        return tuple(ops.linear(plain, linear.weight, out_dtype) for linear in linears)
    return tuple(ops.fp8_linear(*_codes(x), linear.weight, _scale(linear), out_dtype) for linear in linears)


def project_parts(ops: Operators, x: Rounded, linear: Linear) -> Tensor:
    """x [B, K] through a linear: FP32 parts [S, B, N], to be added up."""
    if linear.takes_codes:
        return ops.fp8_linear_parts(*_codes(x), linear.weight, _scale(linear))
    return ops.linear_parts(_plain(ops, x, linear), linear.weight)


def project_into(ops: Operators, x: Rounded, linear: Linear, out: Tensor) -> None:
    """x [B, K] through a linear, written to `out` [B, N]."""
    if linear.takes_codes:
        ops.fp8_linear(*_codes(x), linear.weight, _scale(linear), out.dtype, out)
    else:
        ops.linear(_plain(ops, x, linear), linear.weight, out.dtype, out)


def _plain(ops: Operators, x: Rounded, linear: Linear) -> Tensor:
    return ops.act_quant_roundtrip(x.plain) if linear.quantise else x.plain


def _codes(x: Rounded) -> tuple[Tensor, Tensor | None]:
    assert x.codes is not None, "rounded for another layer"
    return x.codes, x.scales


def _scale(linear: Linear) -> Tensor:
    assert linear.scale is not None, "weights that share an input are stored alike"
    return linear.scale


def _bytes(x: Tensor) -> Tensor:
    """FP8 values and scales as their bytes: torch joins those types only so."""
    return x.view(torch.uint8) if x.element_size() == 1 else x

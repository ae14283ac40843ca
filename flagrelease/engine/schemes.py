"""How a linear's weight is multiplied: what its input is rounded to, and which product takes both.

A stored format has one scheme here, beside its declaration in `formats/` and its operators in `kernels/`. The modules
of the model ask a `Linear` for its scheme and name no format.

Legend: B rows, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.weights import FP8_BLOCK, FP8_TILE, FP8_TILED
from flagrelease.engine.numerics import Numerics


class Rounded(NamedTuple):
    """An activation [.., K], and it rounded as a scheme takes it: codes and their scales, or rounded values alone."""

    plain: Tensor
    codes: Tensor | None = None
    scales: Tensor | None = None

    def at(self, tokens: slice) -> Rounded:
        """Some of the tokens of [B, S, K]."""
        codes, scales = (None if each is None else each[:, tokens] for each in (self.codes, self.scales))
        return Rounded(self.plain[:, tokens], codes, scales)


class Scheme(Protocol):
    """Of a weight [N, K] and its scales.

    Attributes:
        rounds: whether the input is rounded.
        fused: operators that end before a product round its input themselves: to FP8 in groups of 128.
        rows_per_scale: rows of the weight that share a row of scales; 1 if it is plain.
    """

    @property
    def rounds(self) -> bool: ...  # noqa: D102
    @property
    def fused(self) -> bool: ...  # noqa: D102
    @property
    def rows_per_scale(self) -> int: ...  # noqa: D102

    def round(self, ops: Operators, x: Tensor) -> Rounded:
        """x [.., K] as the product takes it."""

    def product(
        self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None, out_dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x [.., K] -> [.., N], written to `out` [B, N] if that is given."""

    def parts(self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None) -> Tensor:
        """x [B, K] -> FP32 parts [S, B, N], to be added up."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain weight; `rounds`: its input is rounded to FP8 in groups of `group` columns all the same.

    That is the native computation on a BF16 release: the same numbers are multiplied.
    """

    rounds: bool
    group: int = FP8_BLOCK
    fused: bool = False
    rows_per_scale: int = 1

    def round(self, ops: Operators, x: Tensor) -> Rounded:
        """See `Scheme`."""
        return Rounded(x, ops.act_quant_roundtrip(x, self.group)) if self.rounds else Rounded(x)

    def product(
        self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None, out_dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Scheme`."""
        return ops.linear(x.plain if x.codes is None else x.codes, weight, out_dtype, out)

    def parts(self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None) -> Tensor:
        """See `Scheme`."""
        return ops.linear_parts(x.plain if x.codes is None else x.codes, weight)


@dataclass(frozen=True, slots=True)
class Fp8Blocks:
    """FP8 with a scale for 128 x 128; so is the input of FP4 experts rounded."""

    rounds: bool = True
    fused: bool = True
    rows_per_scale: int = FP8_BLOCK

    def round(self, ops: Operators, x: Tensor) -> Rounded:
        """See `Scheme`."""
        return Rounded(x, *ops.act_quant(x))

    def product(
        self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None, out_dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Scheme`."""
        return ops.fp8_linear(_there(x.codes), x.scales, weight, _there(scale), out_dtype, out)

    def parts(self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None) -> Tensor:
        """See `Scheme`."""
        return ops.fp8_linear_parts(_there(x.codes), x.scales, weight, _there(scale))


@dataclass(frozen=True, slots=True)
class Fp8Tiles:
    """V4.1's FP8 with a scale for 32 x 32, whose inputs have one for 32 columns."""

    rounds: bool = True
    fused: bool = False
    rows_per_scale: int = FP8_TILE

    def round(self, ops: Operators, x: Tensor) -> Rounded:
        """See `Scheme`."""
        return Rounded(x, ops.act_quant_roundtrip(x, FP8_TILE))

    def product(
        self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None, out_dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Scheme`."""
        y = ops.fp8_linear_32(_there(x.codes), weight, _there(scale), out_dtype)
        return y if out is None else out.copy_(y)

    def parts(self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None) -> Tensor:
        """See `Scheme`."""
        return self.product(ops, x, weight, scale, torch.float32)[None]


@dataclass(frozen=True, slots=True)
class ByRow:
    """INT8 or FP8 codes (`dtype`) with a scale for each row, and so are the inputs: a scale for each token."""

    dtype: torch.dtype
    rounds: bool = True
    fused: bool = False
    rows_per_scale: int = 1

    def round(self, ops: Operators, x: Tensor) -> Rounded:
        """See `Scheme`."""
        return Rounded(x, *ops.token_quant(x, self.dtype))

    def product(
        self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None, out_dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Scheme`."""
        return ops.row_linear(_there(x.codes), _there(x.scales), weight, _there(scale), out_dtype, out)

    def parts(self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None) -> Tensor:
        """See `Scheme`. One part: the INT32 sum is whole before it is scaled."""
        return self.product(ops, x, weight, scale, torch.float32)[None]


@dataclass(frozen=True, slots=True)
class Mx:
    """MXFP8: a scale for 32 elements of a row, of the weight and of the input."""

    rounds: bool = True
    fused: bool = False
    rows_per_scale: int = 1

    def round(self, ops: Operators, x: Tensor) -> Rounded:
        """See `Scheme`."""
        return Rounded(x, ops.mx_act_quant_roundtrip(x))

    def product(
        self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None, out_dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Scheme`."""
        return ops.mx_linear(_there(x.codes), weight, _there(scale), out_dtype, out)

    def parts(self, ops: Operators, x: Rounded, weight: Tensor, scale: Tensor | None) -> Tensor:
        """See `Scheme`."""
        return self.product(ops, x, weight, scale, torch.float32)[None]


_OF_FORMAT: dict[str, Scheme] = {
    "fp4": Fp8Blocks(),
    "fp8": Fp8Blocks(),
    "int8": ByRow(torch.int8),
    "fp8-channel": ByRow(torch.float8_e4m3fn),
    "mxfp8": Mx(),
    FP8_TILED: Fp8Tiles(),
}


def scheme_of(fmt: str, numerics: Numerics) -> Scheme:
    """The scheme of weights that are held in `fmt` (see `weight_format`) while the model runs."""
    return _OF_FORMAT[fmt] if fmt in _OF_FORMAT else Plain(numerics.rounds == "every", numerics.group)


def as_bytes(x: Tensor) -> Tensor:
    """Codes and scales of one byte as bytes: torch joins and copies FP8 and E8M0 only so."""
    return x.view(torch.uint8) if x.element_size() == 1 else x


def _there(part: Tensor | None) -> Tensor:
    assert part is not None, "rounded for another scheme, or a weight in codes without scales"
    return part

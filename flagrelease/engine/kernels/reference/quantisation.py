"""FP8 and FP4 with power-of-two scales: activations on the fly, and the decoding of stored weights.

The rounded scale is R(a, M) = 2^ceil(log2(a * fl32(1/M))), taken from the bits of the FP32 number as upstream's
kernel.py does. Values are rounded to nearest, ties to the even code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.e4m3 import numbers, to_e4m3
from flagrelease.engine.kernels.reference.precision import wide
from flagrelease.engine.kernels.weights import (
    FP4_BLOCK,
    FP8_BLOCK,
    FP8_TILE,
    FP8_TILED,
    MX_BLOCK,
    check_weight,
    weight_format,
)

E4M3_MAX = 448.0
E2M1_MAX = 6.0
E4M3_AMAX_FLOOR = 1e-4  # upstream's guards against a zero group
E2M1_AMAX_FLOOR = 6.0 * 2.0**-126

_BLOCKS = {"fp8": (FP8_BLOCK, FP8_BLOCK), FP8_TILED: (FP8_TILE, FP8_TILE)}  # rows and columns that share a scale
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def act_quant(x: Tensor, block: int = FP8_BLOCK) -> tuple[Tensor, Tensor]:
    """Quantise groups of `block` columns to FP8.

    Args:
        x: [.., N], `block` divides N.
        block: columns that share one scale.

    Returns:
        E4M3 codes [.., N], and their scales FP32 [.., N/block], powers of two; x is about code * scale.
    """
    groups = _groups(x, block)
    scale = _power_of_two_scale(groups, E4M3_AMAX_FLOOR, E4M3_MAX)
    codes = to_e4m3((groups / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX))
    return codes.flatten(-2), scale


def act_quant_roundtrip(x: Tensor, block: int = FP8_BLOCK, out: Tensor | None = None) -> Tensor:
    """What is left of `x` after `act_quant`: code * scale in x's dtype (exact in BF16).

    Upstream calls this inplace quantisation. Its first release cast to BF16 instead of E4M3, which made it a no-op;
    this is the revised version.
    """
    codes, scale = act_quant(x, block)
    y = (_groups(numbers(codes), block) * scale[..., None]).flatten(-2).to(x.dtype)
    return y if out is None else out.copy_(y)


def fp4_act_quant(x: Tensor, block: int = FP4_BLOCK) -> tuple[Tensor, Tensor]:
    """Quantise groups of `block` columns to FP4 (E2M1).

    Args:
        x: [.., N], `block` even and a divisor of N.
        block: columns that share one scale.

    Returns:
        uint8 [.., N/2], the even column in the low nibble, and scales FP32 [.., N/block], powers of two.
    """
    groups = _groups(x, block)
    scale = _power_of_two_scale(groups, E2M1_AMAX_FLOOR, E2M1_MAX)
    codes = e2m1_codes((groups / scale[..., None]).clamp(-E2M1_MAX, E2M1_MAX)).flatten(-2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scale


def fp4_act_quant_roundtrip(x: Tensor, block: int = FP4_BLOCK, out: Tensor | None = None) -> Tensor:
    """What is left of `x` after `fp4_act_quant`: value * scale in x's dtype (exact in BF16)."""
    packed, scale = fp4_act_quant(x, block)
    y = (_groups(e2m1_values(packed), block) * scale[..., None]).flatten(-2).to(x.dtype)
    return y if out is None else out.copy_(y)


def scaled_fp16(x: Tensor, block: int = FP8_BLOCK) -> tuple[Tensor, Tensor]:
    """BF16 numbers as FP16, to which matrix units take FP8 weights in half the instructions.

    Args:
        x: [.., N], `block` divides N.
        block: columns that share one scale.

    Returns:
        FP16 [.., N], a group's largest in [2^15, 2^16), and scales FP32 [.., N/block], powers of two. Down to 2^-32 of
        a group's largest BF16 numbers are exact, and smaller ones are within 2^-40 of it: far below what adding up the
        group in FP32 loses.
    """
    groups = _groups(x, block)
    exponent = torch.frexp(groups.abs().amax(-1).clamp(min=2.0**-111)).exponent - 16
    scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
    return (groups / scale[..., None]).to(torch.float16).flatten(-2), scale


def e2m1_codes(y: Tensor) -> Tensor:
    """The nearest E2M1 code of |y| <= 6, ties to the even code, as uint8 0..15 (bit 3 is the sign)."""
    a = y.abs()
    # Each comparison is one step up the list of values; its strictness sends a tie to the even code.
    above = (a > 0.25, a >= 0.75, a > 1.25, a >= 1.75, a > 2.5, a >= 3.5, a > 5.0)
    code = torch.stack(above).sum(0, dtype=torch.uint8)
    return code | (torch.signbit(y).to(torch.uint8) << 3)


def e2m1_values(packed: Tensor) -> Tensor:
    """Decode packed FP4 [.., K/2] to FP32 [.., K]: low nibble first."""
    raw = packed.view(torch.uint8)
    codes = torch.stack((raw & 15, raw >> 4), dim=-1).flatten(-2)
    table = torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)), dtype=torch.float32, device=packed.device)
    return table[codes.long()]


def dequantise(w: Tensor, ws: Tensor | None) -> Tensor:
    """A stored weight as FP32 (float64 for a plain float64 weight): codes times scales, or the weight itself.

    The shapes are those of the table in `ExpertWeights`, without E. Exact for power-of-two scales.
    """
    if ws is None:
        return wide(w)
    check_weight(w, ws)
    fmt = weight_format(w, ws)
    if fmt == "fp4":
        return (_groups(e2m1_values(w), FP4_BLOCK) * numbers(ws)[..., None]).flatten(-2)
    if fmt == "mxfp8":
        return (_groups(numbers(w), MX_BLOCK) * numbers(ws.view(torch.float8_e8m0fnu))[..., None]).flatten(-2)
    if fmt in _BLOCKS:
        return numbers(w) * _spread(ws, w, _BLOCKS[fmt])
    return numbers(w) * ws[..., None]


def decode(w: Tensor, ws: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A stored weight in `dtype`: codes times scales, rounded once to the nearest, ties to even. Shapes: `dequantise`.

    In BF16 that is exact where scales are powers of two: codes have at most seven significant bits.
    """
    if ws is None:
        return w.to(dtype)
    check_weight(w, ws)
    fmt = weight_format(w, ws)
    if fmt in _BLOCKS:
        return decode_fp8(w, ws, dtype, _BLOCKS[fmt])
    if fmt in ("int8", "fp8-channel"):
        return _rounded_once(w, ws[..., None], dtype)
    return dequantise(w, ws).to(dtype)


def decode_fp8(w: Tensor, ws: Tensor, dtype: torch.dtype, block: tuple[int, int]) -> Tensor:
    """An FP8 weight [.., N, K] in `dtype`: codes times scales, rounded once to the nearest, ties to even.

    ws is [.., ceil(N / block[0]), ceil(K / block[1])], E8M0 or FP32. Under an FP32 scale that is no power of two the
    product has up to 28 significant bits: rounding it to FP32 first and then to BF16 would round twice.
    """
    scale = _spread(ws, w, block)
    if ws.dtype != torch.float32:
        return (numbers(w) * scale).to(dtype)
    return _rounded_once(w, scale, dtype)


def _rounded_once(w: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes times FP32 scales in `dtype`."""
    if dtype != torch.bfloat16:
        return (numbers(w) * scale).to(dtype)
    return _round_to_odd(numbers(w, torch.float64) * scale.double()).to(dtype)


def _spread(ws: Tensor, w: Tensor, block: tuple[int, int]) -> Tensor:
    """The FP32 scale of every element of w."""
    rows, columns = w.shape[-2:]
    tall = numbers(ws).repeat_interleave(block[0], -2)[..., :rows, :]
    return tall.repeat_interleave(block[1], -1)[..., :columns]


def _round_to_odd(exact: Tensor) -> Tensor:
    """float64 as FP32: cut off towards zero, with the last bit set if anything was lost.

    Rounding the result to BF16 then gives what rounding `exact` itself would (Boldo and Melquiond, "Emulation of FMA
    and correctly rounded sums: proved algorithms using rounding to odd").
    """
    near = exact.float()
    cut = torch.where(near.double().abs() > exact.abs(), torch.nextafter(near, torch.zeros_like(near)), near)
    lost = (cut.double() != exact).to(torch.int32)
    return (cut.view(torch.int32) | lost).view(torch.float32)


def _groups(x: Tensor, block: int) -> Tensor:
    """x [.., N] in FP32 as [.., N/block, block]. Scales are FP32 arithmetic even under a float64 oracle."""
    if x.shape[-1] % block:
        raise ValueError(f"groups of {block} columns do not divide {x.shape[-1]}")
    return x.float().view(*x.shape[:-1], x.shape[-1] // block, block)


def _power_of_two_scale(groups: Tensor, floor: float, largest: float) -> Tensor:
    inverse = torch.tensor(1.0 / largest, dtype=torch.float32)
    bits = (groups.abs().amax(-1).clamp(min=floor) * inverse.to(groups.device)).view(torch.int32)
    exponent = ((bits >> 23) & 255) + ((bits & 0x7FFFFF) != 0).int()
    scale: Tensor = (exponent << 23).view(torch.float32)
    return scale

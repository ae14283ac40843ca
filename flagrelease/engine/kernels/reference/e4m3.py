"""FP8 codes and E8M0 scales in torch: converted by torch, or by integer arithmetic where FP8 is emulated.

Both are the same to the bit (tests/kernels/test_kernels_emulation.py); torch's conversion is the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.emulation import torch_emulates


def to_e4m3(y: Tensor) -> Tensor:
    """FP32 as E4M3: to the nearest, ties to the even code; beyond 448, infinities included, 448; NaN stays NaN."""
    if torch_emulates(y.device.type):
        return nearest_e4m3(y).view(torch.float8_e4m3fn)
    return y.to(torch.float8_e4m3fn)


def numbers(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """E4M3 codes, E8M0 scales or plain numbers in `dtype`, FP32 or wider."""
    if x.dtype == torch.float8_e4m3fn and torch_emulates(x.device.type):
        return e4m3_values(x.view(torch.uint8)).to(dtype)
    if x.dtype == torch.float8_e8m0fnu and torch_emulates(x.device.type):
        return e8m0_values(x.view(torch.uint8)).to(dtype)
    return x.to(dtype)


def nearest_e4m3(y: Tensor) -> Tensor:
    """The codes of `to_e4m3` (uint8) by integers alone; `quantisation/e4m3.py` does the same inside kernels."""
    bits = y.contiguous().view(torch.int32)
    size = bits & 0x7FFFFFFF
    # From 2^-6 on: the exponent and three bits of the mantissa. What is cut off, 20 bits, carries over by itself.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below it a code counts steps of 2^-9. Shifted by 25 nothing is left; FP32's own subnormal numbers are such.
    digits = (size & 0x7FFFFF) | 0x800000
    shift = (141 - (size >> 23)).clamp(1, 25)
    half = torch.ones_like(shift) << (shift - 1)
    subnormal = (digits + half - 1 + ((digits >> shift) & 1)) >> shift
    code = subnormal.where(size < (121 << 23), normal).clamp(max=126)
    code = code.masked_fill(size > 0x7F800000, 127)
    return (code | ((bits >> 24) & 128)).to(torch.uint8)


def e4m3_values(codes: Tensor) -> Tensor:
    """E4M3 codes (uint8) as FP32, by integers."""
    magnitude = codes.int() & 127
    normal = ((magnitude << 20) + (120 << 23)).view(torch.float32)
    value = (magnitude.float() * 2.0**-9).where(magnitude < 8, normal).masked_fill(magnitude == 127, torch.nan)
    return torch.where(codes >= 128, -value, value)


def e8m0_values(codes: Tensor) -> Tensor:
    """E8M0 bytes b (uint8) as FP32, by integers: 2^(b - 127); 2^-127 is subnormal there, and 255 is NaN."""
    exponent = codes.int()
    bits = (exponent << 23).masked_fill(exponent == 0, 0x400000).masked_fill(exponent == 255, 0x7FC00000)
    return bits.view(torch.float32)

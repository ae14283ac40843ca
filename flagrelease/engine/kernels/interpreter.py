"""What every kernel does through one place because Triton's CPU interpreter (TRITON_INTERPRET=1) gets it wrong.

Measured with Triton 3.6.0 and 3.9.0: its `tl.dot` of BF16 multiplies bit patterns as integers, its FP32 -> BF16 cast
truncates, and its FP32 -> E4M3 cast loses a carry out of the mantissa (-127.89 becomes -64). On a GPU all three are
right, and round to nearest even. `dot` and `cast` give the GPU's results in both places, so that interpreted tests mean
something.

Kernel files leave out `from __future__ import annotations`: Triton 3.0's interpreter reads annotations as objects.
"""

import os
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# Triton has no type annotations; this gives its decorator one.
jit: Callable[[Callable[..., Any]], Any] = triton.jit

# Read once, at import, as Triton's decorator does.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@jit
def dot(a: tl.tensor, b: tl.tensor, acc: tl.tensor) -> tl.tensor:
    """acc + a b with FP32 accumulation; FP32 operands are multiplied as FP32, not TF32."""
    if INTERPRETED:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@jit
def cast(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """FP32 `x` rounded to `dtype`, to nearest even. |x| <= 448 for E4M3."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            bits += 0x7FFF + ((bits >> 16) & 1)
            x = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
        elif dtype == tl.float8e4nv:
            x = round_e4m3(x)
    return x.to(dtype)


@jit
def round_e4m3(x: tl.tensor) -> tl.tensor:
    """The E4M3 value nearest to FP32 |x| <= 448, ties to even, as FP32: needs no FP8 in hardware."""
    # The spacing of E4M3 around x: 3 mantissa bits, exponents from -6 (biased 121) up.
    bits = x.to(tl.int32, bitcast=True)
    exponent = tl.maximum((bits >> 23) & 255, 121)
    spacing = ((exponent - 3) << 23).to(tl.float32, bitcast=True)
    steps = x * ((257 - exponent) << 23).to(tl.float32, bitcast=True)
    y = ((steps + 12582912.0) - 12582912.0) * spacing  # 1.5 * 2^23: there FP32 addition rounds to integers
    return (y.to(tl.int32, bitcast=True) | (bits & -2147483648)).to(tl.float32, bitcast=True)  # -0 lost its sign

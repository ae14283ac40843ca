"""E4M3 without hardware for it, for use inside kernels: codes as bytes, rounded and read by integer arithmetic.

A launch gives E4M3 tensors to a kernel in their type or, where FP8 is emulated, as uint8 (see `emulation`). The type of
the pointer is the compile-time switch: `numbers` follows a load, `as_e4m3` stands before a store, and with the type in
hardware both compile to what stood there without them.
"""

import triton.language as tl

from flagrelease.engine.kernels.interpreter import cast, jit


@jit
def nearest_e4m3(y: tl.tensor) -> tl.tensor:
    """The code (int32, 0 to 255) of the E4M3 number nearest to FP32 y, ties to the even code, by integers alone.

    As torch defines it: beyond 448, infinities included, a number becomes 448 of its sign; NaN is 127 or 255.
    """
    bits = y.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # From 2^-6 on: the exponent and three bits of the mantissa. What is cut off, 20 bits, carries over by itself.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below it a code counts steps of 2^-9. Shifted by 25 nothing is left; FP32's own subnormal numbers are such.
    digits = (size & 0x7FFFFF) | 0x800000
    shift = tl.minimum(tl.maximum(141 - (size >> 23), 1), 25)
    half = (tl.zeros_like(shift) + 1) << (shift - 1)
    subnormal = (digits + half - 1 + ((digits >> shift) & 1)) >> shift
    code = tl.minimum(tl.where(size < (121 << 23), subnormal, normal), 126)
    code = tl.where(size > 0x7F800000, 127, code)
    return code | ((bits >> 24) & 128)


@jit
def e4m3_value(code: tl.tensor) -> tl.tensor:
    """The FP32 value of an E4M3 code 0..255 (int32)."""
    magnitude = code & 127
    normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
    value = tl.where(magnitude == 127, float("nan"), value)
    # By its bit: until Triton 3.9 -x is 0 - x, which of 0 makes 0.
    return (value.to(tl.int32, bitcast=True) | ((code & 128) << 24)).to(tl.float32, bitcast=True)


@jit
def numbers(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """What was loaded as `x`: E4M3 codes that came as bytes in `dtype`, BF16 or wider, exactly; all else as it is."""
    if x.dtype == tl.uint8:
        return e4m3_value(x.to(tl.int32)).to(dtype)
    else:  # noqa: RET505 - Triton compiles what follows a return
        return x


@jit
def as_e4m3(y: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """FP32 |y| <= 448 as E4M3: in the type, or, where `dtype` is uint8, as bytes of codes."""
    if dtype == tl.uint8:
        return nearest_e4m3(y).to(tl.uint8)
    else:  # noqa: RET505 - Triton compiles what follows a return
        return cast(y, tl.float8e4nv)

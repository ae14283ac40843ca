"""FP4 codes and power-of-two scales as integer arithmetic, for use inside kernels."""

import triton.language as tl

from flagrelease.engine.kernels.interpreter import jit


@jit
def power_of_two_exponent(x: tl.tensor) -> tl.tensor:
    """The biased exponent of 2^ceil(log2(x)), for positive normal FP32 x."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)


@jit
def power_of_two(exponent: tl.tensor) -> tl.tensor:
    """The FP32 number with that biased exponent, 1..254."""
    return (exponent << 23).to(tl.float32, bitcast=True)


@jit
def scale_value(scale: tl.tensor) -> tl.tensor:
    """A stored scale as FP32. A uint8 is an E8M0 byte b: 2^(b-127), with 2^-127 for 0 and NaN for 255."""
    if scale.dtype == tl.uint8:
        byte = scale.to(tl.int32)
        bits = tl.where(byte == 0, 0x400000, byte << 23)  # 2^-127 is subnormal in FP32
        return tl.where(byte == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)
    return scale.to(tl.float32)


@jit
def e2m1_code(y: tl.tensor) -> tl.tensor:
    """The nearest E2M1 code (0..15, bit 3 is the sign) of FP32 |y| <= 6, ties to the even code."""
    a = tl.abs(y)
    code = (a > 0.25).to(tl.int32) + (a >= 0.75).to(tl.int32) + (a > 1.25).to(tl.int32) + (a >= 1.75).to(tl.int32)
    code += (a > 2.5).to(tl.int32) + (a >= 3.5).to(tl.int32) + (a > 5.0).to(tl.int32)
    return code | ((y.to(tl.int32, bitcast=True) >> 28) & 8)


@jit
def e2m1_value(code: tl.tensor) -> tl.tensor:
    """The FP32 value of an E2M1 code 0..15 (int32).

    From 1 on, codes 2 to 7 have the exponent and the mantissa bit of FP32, 126 below its bias; 0 and 0.5 are subnormal.
    """
    magnitude = code & 7
    normal = ((magnitude << 22) + (126 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 2, magnitude.to(tl.float32) * 0.5, normal)
    # By its bit: until Triton 3.9 -x is 0 - x, which of 0 makes 0.
    return (value.to(tl.int32, bitcast=True) | ((code & 8) << 28)).to(tl.float32, bitcast=True)

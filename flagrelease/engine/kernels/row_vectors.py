"""Steps on one row that a program holds whole, for use inside the fused kernels of decoding.

Legend: D columns, a power of two; R of them, the last, are rotated. Values are FP32, rounded to the compute dtype
wherever the plain operators store them.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl

from flagrelease.engine.kernels.interpreter import cast, jit, round_e4m3
from flagrelease.engine.kernels.quantisation.codes import e2m1_code, e2m1_value, power_of_two, power_of_two_exponent
from flagrelease.engine.kernels.quantisation.e4m3 import as_e4m3


@jit
def sum_parts(
    parts_ptr: tl.tensor, at: tl.tensor, inside: tl.tensor, part_stride: tl.tensor, S: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The sum of S parts, one after the other; AT_ONCE of them are asked for before the first has come."""
    total = tl.load(parts_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for start in range(1, S, AT_ONCE):
        for step in tl.static_range(AT_ONCE):
            s = start + step + tl.zeros_like(at)
            total += tl.load(parts_ptr + s * part_stride + at, mask=inside & (s < S), other=0.0).to(tl.float32)
    return total


@jit
def rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """FP32 x as `dtype` holds it."""
    return cast(x, dtype).to(tl.float32)


@jit
def normed(x: tl.tensor, weight: tl.tensor, D: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """`reference.rms_norm` of one row; columns beyond D are zero."""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps) * weight


@jit
def stepwise_factor(squares: tl.tensor, D: tl.tensor, eps: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """What `reference.rms_norm` multiplies by with `stepwise`; `squares`: the sum over D squares rounded to `dtype`."""
    return rounded(tl.rsqrt(rounded(rounded(squares / D, dtype) + eps, dtype)), dtype)


@jit
def turns(cos_ptr: tl.tensor, sin_ptr: tl.tensor, position: tl.tensor, D: tl.constexpr, R: tl.constexpr) -> tl.tensor:
    """Cosine and sine for each pair of D columns [D/2], of which the last R turn; the tables have R/2 columns."""
    return turns_of(cos_ptr, sin_ptr, position, tl.arange(0, D // 2), D, R)


@jit
def turns_of(
    cos_ptr: tl.tensor, sin_ptr: tl.tensor, position: tl.tensor, pair: tl.tensor, D: tl.constexpr, R: tl.constexpr
) -> tl.tensor:
    """As `turns`, for some of the pairs."""
    pair = pair - (D - R) // 2
    at = position * (R // 2) + pair
    return tl.load(cos_ptr + at, mask=pair >= 0, other=1.0), tl.load(sin_ptr + at, mask=pair >= 0, other=0.0)


@jit
def turned(x: tl.tensor, cos: tl.tensor, sin: tl.tensor, D: tl.constexpr) -> tl.tensor:
    """[D] with its pairs of columns turned; with -sin they are turned back."""
    even, odd = tl.split(tl.reshape(x, (D // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (D,))


@jit
def fp8_steps(x: tl.tensor, D: tl.constexpr, GROUP: tl.constexpr) -> tl.tensor:
    """x [D] over its groups' scales, |.| <= 448, as [D/GROUP, GROUP]; and the scales' biased exponents [D/GROUP]."""
    groups = tl.reshape(x, (D // GROUP, GROUP))
    amax = tl.maximum(tl.max(tl.abs(groups), axis=1), 1e-4)
    exponent = power_of_two_exponent(amax * (1.0 / 448.0))
    y = groups * power_of_two(254 - exponent)[:, None]
    return tl.minimum(tl.maximum(y, -448.0), 448.0), exponent


@jit
def store_fp8(x: tl.tensor, codes_ptr: tl.tensor, scales_ptr: tl.tensor, N: tl.tensor, D: tl.constexpr) -> None:
    """`reference.act_quant` of one row, of which N columns count."""
    y, exponent = fp8_steps(x, D, 128)
    d, g = tl.arange(0, D), tl.arange(0, D // 128)
    tl.store(codes_ptr + d, as_e4m3(tl.reshape(y, (D,)), codes_ptr.dtype.element_ty), mask=d < N)
    tl.store(scales_ptr + g, power_of_two(exponent), mask=g * 128 < N)


@jit
def store_scaled(x: tl.tensor, y_ptr: tl.tensor, scales_ptr: tl.tensor, D: tl.constexpr) -> None:
    """`reference.scaled_fp16` of one row."""
    groups = tl.reshape(x, (D // 128, 128))
    largest = tl.max(tl.abs(groups), axis=1).to(tl.int32, bitcast=True) >> 23
    exponent = tl.maximum(largest, 16) - 15
    y = groups * power_of_two(254 - exponent)[:, None]
    tl.store(y_ptr + tl.arange(0, D), tl.reshape(y, (D,)).to(tl.float16))
    tl.store(scales_ptr + tl.arange(0, D // 128), power_of_two(exponent))


@jit
def fp8_rounded(x: tl.tensor, D: tl.constexpr, R: tl.constexpr, GROUP: tl.constexpr) -> tl.tensor:
    """`reference.act_quant_roundtrip` of all but the last R columns."""
    y, exponent = fp8_steps(x, D, GROUP)
    y = tl.reshape(round_e4m3(y) * power_of_two(exponent)[:, None], (D,))
    return tl.where(tl.arange(0, D) < D - R, y, x)


@jit
def fp4_rounded(x: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """`reference.fp4_act_quant_roundtrip` of N numbers in groups of 32."""
    groups = tl.reshape(x, (N // 32, 32))
    amax = tl.maximum(tl.max(tl.abs(groups), axis=1), 6.0 * 2.0**-126)
    exponent = power_of_two_exponent(amax * (1.0 / 6.0))
    y = groups * power_of_two(254 - exponent)[:, None]
    y = e2m1_value(e2m1_code(tl.minimum(tl.maximum(y, -6.0), 6.0)))
    return tl.reshape(y * power_of_two(exponent)[:, None], (N,))


@jit
def hadamard_signs(D: tl.constexpr) -> tl.tensor:
    """Sylvester's matrix [D, D], D <= 256, in FP32."""
    d = tl.arange(0, D)
    parity = d[:, None] & d[None, :]
    parity ^= parity >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    return (1 - 2 * (parity & 1)).to(tl.float32)

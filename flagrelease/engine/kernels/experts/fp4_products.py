"""Products of arranged FP4 weights and a few or many tokens: the inner loops of the routed experts.

The weights are the left operand of the matrix unit and the tokens its columns: a tile of codes goes from memory to the
registers and is decoded there, once for all tokens, and few tokens waste no more than idle columns. For few tokens,
whose time is that of decoding, weights and activations are FP8, and each 32 columns, which share a weight's scale, are
added up in FP32; for many, whose time is that of multiplying and adding, both are BF16.

Legend: BLOCK_N rows of weights, BLOCK_M rows of x, K columns of both, a multiple of 256. Addresses are a pointer and
offsets, which take half the registers of as many pointers. All rows of weights are there: arranged widths are whole
blocks of 256.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl

from flagrelease.engine.kernels.interpreter import dot, jit
from flagrelease.engine.kernels.quantisation.e4m3 import numbers
from flagrelease.engine.kernels.quantisation.fp4_codes import fp4_bf16_operands, fp4_columns, fp4_operands


@jit
def coded_product(
    w_ptr: tl.tensor,
    w_at: tl.tensor,
    s_ptr: tl.tensor,
    s_at: tl.tensor,
    x_ptr: tl.tensor,
    xs_ptr: tl.tensor,
    x_row: tl.tensor,
    m_inside: tl.tensor,
    K: tl.tensor,
    PTX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """FP32 [BLOCK_N, BLOCK_M]: rows of codes at w_ptr + w_at with scales, times rows x_row [BLOCK_M] of E4M3 x."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    one = tl.full((BLOCK_M,), 1.0, tl.float32)
    word, group = tl.arange(0, 32), tl.arange(0, 32)
    xs = xs_ptr + x_row * (K // 128)
    x = x_ptr + (x_row * K)[None, :] + group[:, None]
    # Scales go to registers, which Triton does not fill ahead of time, so that is done here: one step ahead.
    s0, s1 = _row_scales(s_ptr, s_at, 0, K)
    xs0, xs1 = _column_scales(xs, m_inside, 0, K)
    for start in range(0, K, 256):
        next_s0, next_s1 = _row_scales(s_ptr, s_at, start + 256, K)
        next_xs0, next_xs1 = _column_scales(xs, m_inside, start + 256, K)
        words = tl.load(w_ptr + start // 8 + (w_at[:, None] + word[None, :]))
        inside = tl.broadcast_to(m_inside[None, :], (32, BLOCK_M))
        x0, x1, x2, x3, x4, x5, x6, x7 = _eight(x + start, 32, inside)
        w0, w1, w2, w3, w4, w5, w6, w7 = fp4_operands(words, BLOCK_N, PTX, x0.dtype)
        zero = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        # Powers of two come and go exactly: in xs's units a product is added by one instruction.
        acc *= _quotient(one, xs0)[None, :]
        acc += dot(w0, x0, zero) * _power(s0, 0)[:, None]
        acc += dot(w1, x1, zero) * _power(s0, 1)[:, None]
        acc += dot(w2, x2, zero) * _power(s0, 2)[:, None]
        acc += dot(w3, x3, zero) * _power(s0, 3)[:, None]
        acc *= _quotient(xs0, xs1)[None, :]
        acc += dot(w4, x4, zero) * _power(s1, 0)[:, None]
        acc += dot(w5, x5, zero) * _power(s1, 1)[:, None]
        acc += dot(w6, x6, zero) * _power(s1, 2)[:, None]
        acc += dot(w7, x7, zero) * _power(s1, 3)[:, None]
        acc *= xs1[None, :]
        s0, s1, xs0, xs1 = next_s0, next_s1, next_xs0, next_xs1
    return acc * 64.0  # see `fp4_operands`


@jit
def spread_product(
    w_ptr: tl.tensor,
    w_at: tl.tensor,
    s_ptr: tl.tensor,
    s_at: tl.tensor,
    x_ptr: tl.tensor,
    xs_ptr: tl.tensor,
    x_row: tl.tensor,
    m_inside: tl.tensor,
    K: tl.tensor,
    PTX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """Like `coded_product` for a few rows of x: each takes eight of the matrix unit's columns, one for each group.

    A group is 32 columns of x. Column 8 t + g has row t's group g and zeros, so that the products of all groups add up
    in one accumulator without mixing: they are started together and waited for once, and one multiplication and one
    addition take their scales.
    """
    COLUMNS: tl.constexpr = 8 * BLOCK_M
    acc = tl.zeros((BLOCK_N, COLUMNS), tl.float32)
    word, k = tl.arange(0, 32), tl.arange(0, 256)
    group = tl.arange(0, COLUMNS) % 8
    row, row_inside = _eight_times(x_row, BLOCK_M), _eight_times(m_inside.to(tl.int32), BLOCK_M) > 0
    x = x_ptr + (row * K)[None, :] + k[:, None]
    x_inside = row_inside[None, :] & (k[:, None] // 32 == group[None, :])
    xs = xs_ptr + row * (K // 128) + group // 4
    at = w_at[:, None] + word[None, :]
    # Scales go to registers, which Triton does not fill ahead of time, so that is done here: one step ahead.
    s0, s1 = _row_scales(s_ptr, s_at, 0, K)
    x_scale = tl.load(xs, mask=row_inside, other=0.0)
    for start in range(0, K, 256):
        next_s0, next_s1 = _row_scales(s_ptr, s_at, start + 256, K)
        next_x_scale = tl.load(xs + tl.minimum(start + 256, K - 256) // 128, mask=row_inside, other=0.0)
        words = tl.load(w_ptr + start // 8 + at)
        columns = numbers(tl.load(x + start, mask=x_inside, other=0.0), tl.bfloat16)
        y = dot(fp4_columns(words, BLOCK_N, PTX, columns.dtype), columns, tl.zeros((BLOCK_N, COLUMNS), tl.float32))
        scales = tl.where((group < 4)[None, :], s0[:, None], s1[:, None]) >> (8 * (group % 4))[None, :]
        acc += y * (((scales & 255) << 23).to(tl.float32, bitcast=True) * x_scale[None, :])
        s0, s1, x_scale = next_s0, next_s1, next_x_scale
    return tl.sum(tl.reshape(acc, (BLOCK_N, BLOCK_M, 8)), axis=2) * 64.0  # see `fp4_operands`


@jit
def _eight_times(x: tl.tensor, M: tl.constexpr) -> tl.tensor:
    """[M] -> [8 M], each number eight times."""
    return tl.reshape(tl.broadcast_to(x[:, None], (M, 8)), (8 * M,))


@jit
def plain_product(
    w_ptr: tl.tensor,
    w_at: tl.tensor,
    s_ptr: tl.tensor,
    s_at: tl.tensor,
    x_ptr: tl.tensor,
    x_row: tl.tensor,
    m_inside: tl.tensor,
    K: tl.tensor,
    PTX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """Like `coded_product`, of BF16 x as `split_columns` leaves it: the matrix unit adds everything up."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    place = tl.arange(0, 32)
    eighth = tl.multiple_of(K // 8, 32)  # else loads are four bytes wide
    x = x_ptr + (x_row * K)[None, :] + place[:, None]
    s = _scale_pairs(s_ptr, s_at, 0, K)
    for start in range(0, eighth, 32):
        next_s = _scale_pairs(s_ptr, s_at, (start + 32) * 8, K)
        words = tl.load(w_ptr + start + (w_at[:, None] + place[None, :]))
        inside = tl.broadcast_to(m_inside[None, :], (32, BLOCK_M))
        x0, x1, x2, x3, x4, x5, x6, x7 = _eight(x + start, eighth, inside)
        f0, f1 = _factor(s, 0, BLOCK_N), _factor(s, 1, BLOCK_N)
        f2, f3 = _factor(s, 2, BLOCK_N), _factor(s, 3, BLOCK_N)
        w0, w1, w2, w3, w4, w5, w6, w7 = fp4_bf16_operands(words, f0, f1, f2, f3, BLOCK_N, PTX)
        acc = dot(w0, x0, acc)
        acc = dot(w1, x1, acc)
        acc = dot(w2, x2, acc)
        acc = dot(w3, x3, acc)
        acc = dot(w4, x4, acc)
        acc = dot(w5, x5, acc)
        acc = dot(w6, x6, acc)
        acc = dot(w7, x7, acc)
        s = next_s
    return acc * 2.0**64


@jit
def _eight(x: tl.tensor, apart: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """The eight operands at pointers x, x + apart, .."""
    return (
        numbers(tl.load(x, mask=inside, other=0.0), tl.bfloat16),
        numbers(tl.load(x + apart, mask=inside, other=0.0), tl.bfloat16),
        numbers(tl.load(x + 2 * apart, mask=inside, other=0.0), tl.bfloat16),
        numbers(tl.load(x + 3 * apart, mask=inside, other=0.0), tl.bfloat16),
        numbers(tl.load(x + 4 * apart, mask=inside, other=0.0), tl.bfloat16),
        numbers(tl.load(x + 5 * apart, mask=inside, other=0.0), tl.bfloat16),
        numbers(tl.load(x + 6 * apart, mask=inside, other=0.0), tl.bfloat16),
        numbers(tl.load(x + 7 * apart, mask=inside, other=0.0), tl.bfloat16),
    )


@jit
def _row_scales(s_ptr: tl.tensor, s_at: tl.tensor, start: tl.tensor, K: tl.tensor) -> tl.tensor:
    """Each row's scales of 256 columns, four bytes in an int32, twice."""
    at = s_ptr + (s_at + tl.minimum(start, K - 256) // 128)  # beyond the end any will do
    return tl.load(at), tl.load(at + 1)


@jit
def _column_scales(xs: tl.tensor, m_inside: tl.tensor, start: tl.tensor, K: tl.tensor) -> tl.tensor:
    """The activations' scales of 256 columns: two of each row."""
    at = xs + tl.minimum(start, K - 256) // 128
    return tl.load(at, mask=m_inside, other=1.0), tl.load(at + 1, mask=m_inside, other=1.0)


@jit
def _power(scales: tl.tensor, PLACE: tl.constexpr) -> tl.tensor:
    """The E8M0 byte at PLACE of an int32 as FP32: its exponent."""
    shifted = scales >> 1 if PLACE == 3 else scales << (23 - 8 * PLACE)
    return (shifted & 0x7F800000).to(tl.float32, bitcast=True)


@jit
def _scale_pairs(s_ptr: tl.tensor, s_at: tl.tensor, start: tl.tensor, K: tl.tensor) -> tl.tensor:
    """`_row_scales` as one tensor [BLOCK_N, 2]."""
    at = s_at[:, None] + (tl.minimum(start, K - 256) // 128 + tl.arange(0, 2))[None, :]
    return tl.load(s_ptr + at)


@jit
def _factor(scales: tl.tensor, PLACE: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    """The E8M0 bytes at PLACE, up to 192, as BF16 times 2^(126 - 64): [N, 2] -> [N, 32], two of each in turn."""
    exponent = ((scales >> (8 * PLACE)) & 255) + 62
    factor = (exponent << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.reshape(tl.broadcast_to(factor[:, None, :, None], (N, 8, 2, 2)), (N, 32))


@jit
def _quotient(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a / b of two powers of two."""
    return (a.to(tl.int32, bitcast=True) - b.to(tl.int32, bitcast=True) + 0x3F800000).to(tl.float32, bitcast=True)

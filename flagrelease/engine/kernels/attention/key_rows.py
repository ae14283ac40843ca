"""Rows of cached keys that are codes, read and written inside kernels; `reference.key_rows` says how they lie.

A row of keys has one byte a column, so that one load brings codes and the low bytes of rotated columns alike; the high
bytes of those and the scales stand behind. Index keys have two columns a byte and are read as two operands, of even and
of odd columns: products add both up.
"""
# ruff: noqa: N803  (dimensions and constants)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.interpreter import cast, jit, round_e4m3
from flagrelease.engine.kernels.layout import power_of_two_columns
from flagrelease.engine.kernels.quantisation.codes import (
    e2m1_code,
    e2m1_value,
    power_of_two,
    power_of_two_exponent,
)
from flagrelease.engine.kernels.quantisation.e4m3 import e4m3_value
from flagrelease.engine.kernels.row_vectors import fp8_steps
from flagrelease.model.v4.cache_size import index_key_row_bytes, key_row_bytes

# Four bytes of codes, the high bytes of rotated columns and scales -> four BF16 numbers. The bits of a code, moved to
# BF16's exponent and mantissa, are its value times 2^-120, subnormal ones included. Where the scale is zero, as it is
# of the rotated columns alone, the numbers are put together of their low and high bytes. Each of the four asks its own
# scale, for as operands of the matrix unit they lie in several rows, of which some may not be there: m is all ones
# under a scale, as 0x7F80 added to any normal number reaches the half's top bit, which prmt copies to all others.
_PTX_E4M3 = tl.constexpr(
    "{ .reg .b32 t, a, c, m; mov.b32 c, 0x7B807B80;"
    + "".join(
        f"""
        prmt.b32 t, $2, 0, {pair};
        shr.b32 a, t, 4;
        and.b32 a, a, 0x07F007F0;
        and.b32 t, t, 0x80008000;
        or.b32 a, a, t;
        mul.rn.bf16x2 a, a, c;
        mul.rn.bf16x2 a, a, ${4 + part};
        prmt.b32 t, $2, $3, {both};
        add.u32 m, ${4 + part}, 0x7F807F80;
        prmt.b32 m, m, 0, 0xBB99;
        lop3.b32 ${part}, a, t, m, 0xE4;
        """
        for part, (pair, both) in enumerate((("0x1404", "0x5140"), ("0x3424", "0x7362")))
    )
    + "}"
)
# Four bytes of two E2M1 codes and their scales -> four BF16 numbers of low nibbles, four of high ones. The bytes of
# BF16 numbers are looked up by codes, four at a time.
_PTX_E2M1 = tl.constexpr(
    "{ .reg .b32 m, t, h, l, s, h0, l0, h1, l1; and.b32 m, $4, 0x77777777;"
    "mov.b32 h0, 0x3F3F3F00; mov.b32 h1, 0x40404040; mov.b32 l0, 0xC0800000; mov.b32 l1, 0xC0804000;"
    + "".join(
        f"""
        prmt.b32 h, h0, h1, m;
        prmt.b32 l, l0, l1, m;
        shr.b32 m, m, 16;
        prmt.b32 t, $4, 0, {pair};
        shl.b32 s, t, 12;
        and.b32 s, s, 0x80008000;
        shl.b32 t, t, 8;
        and.b32 t, t, 0x80008000;
        prmt.b32 ${part}, l, h, 0x6240;
        or.b32 ${part}, ${part}, s;
        mul.rn.bf16x2 ${part}, ${part}, ${5 + part};
        prmt.b32 ${2 + part}, l, h, 0x7351;
        or.b32 ${2 + part}, ${2 + part}, t;
        mul.rn.bf16x2 ${2 + part}, ${2 + part}, ${5 + part};
        """
        for part, pair in enumerate(("0x4140", "0x4342"))
    )
    + "}"
)


def row_bytes(keys: Tensor, dtype: torch.dtype, width: int) -> int:
    """Of keys [.., N, HD] of one sequence after the other: the bytes of a row if they are codes, 0 if they are plain.

    Raises:
        ValueError: they are neither plain keys of `dtype` and a power of two columns nor the codes of BF16 ones.
    """
    if keys.dtype != torch.uint8:
        if power_of_two_columns(keys) != width or keys.dtype != dtype:
            raise ValueError(f"{dtype} attention of {width} columns over keys {keys.dtype} {tuple(keys.shape)}")
        return 0
    size = key_row_bytes(width)
    if dtype != torch.bfloat16 or keys.shape[-1] != size or keys.stride(-1) != 1 or keys.stride(-2) != size:
        raise ValueError(f"{dtype} attention of {width} columns over codes {tuple(keys.shape)} {keys.stride()}")
    return size


def index_row_bytes(keys: Tensor, dtype: torch.dtype, width: int) -> int:
    """As `row_bytes`, for index keys [B, N, ID], which may be plain ones of any width and strides."""
    if keys.dtype != torch.uint8:
        if keys.dtype != dtype or keys.shape[-1] != width:
            raise ValueError(f"{dtype} index scores of {width} columns over keys {keys.dtype} {tuple(keys.shape)}")
        return 0
    size = index_key_row_bytes(width)
    if dtype != torch.bfloat16 or keys.shape[-1] != size or keys.stride(-1) != 1 or keys.stride(-2) != size:
        raise ValueError(f"{dtype} index scores of {width} columns over codes {tuple(keys.shape)} {keys.stride()}")
    return size


@jit
def e4m3_code(y: tl.tensor) -> tl.tensor:
    """The code (int32) of FP32 y, which is a value of E4M3. Chips without FP8 have no instruction for it."""
    bits = y.to(tl.int32, bitcast=True)
    normal = ((bits >> 20) & 2047) - 960
    subnormal = (tl.abs(y) * 512.0).to(tl.int32)
    return tl.where(normal < 8, subnormal, normal) | ((bits >> 24) & 128)


@jit
def fetch_keys(keys: tl.tensor, slot: tl.tensor, D: tl.constexpr, ROW: tl.constexpr) -> tl.tensor:
    """What is stored in `slot` [T] of one sequence, of rows of ROW bytes; zeros where it is -1. See `decoded_keys`."""
    row, there, d = keys + slot[:, None] * ROW, (slot >= 0)[:, None], tl.arange(0, D)[None, :]
    low = tl.load(row + d, mask=there, other=0)
    high = tl.load(row + (D + tl.arange(0, 64))[None, :], mask=there, other=0)
    exponent = tl.load(row + (D + 64 + tl.arange(0, D // 64))[None, :], mask=there, other=0)
    return low, high, exponent


@jit
def decoded_keys(
    low: tl.tensor, high: tl.tensor, exponent: tl.tensor, dtype: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
    PTX: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Keys [T, D] of what `fetch_keys` has brought. Behind the last scale is a zero, which marks rotated columns."""
    G: tl.constexpr = D // 64
    low, high = tl.reshape(low, (T, G, 64)), tl.broadcast_to(high[:, None, :], (T, G, 64))
    if PTX:
        scale = (exponent.to(tl.int16) << 7).to(tl.bfloat16, bitcast=True)
        scale = tl.broadcast_to(scale[:, :, None], (T, G, 64))
        keys = tl.inline_asm_elementwise(
            _PTX_E4M3, "=r,=r,r,r,r,r", [low, high, scale], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    else:
        value = e4m3_value(low.to(tl.int32)) * power_of_two(exponent.to(tl.int32))[:, :, None]
        bits = (high.to(tl.int32) << 24) | (low.to(tl.int32) << 16)
        last = (tl.arange(0, G) == G - 1)[None, :, None]
        keys = cast(tl.where(last, bits.to(tl.float32, bitcast=True), value), dtype)
    return tl.reshape(keys, (T, D))


@jit
def load_index_query(
    q: tl.tensor, stride: tl.tensor, h: tl.tensor, H: tl.tensor, BLOCK_H: tl.constexpr, D: tl.constexpr
) -> tl.tensor:
    """The even and the odd columns [BLOCK_H, D/2] of heads h, `stride` apart, of one query."""
    x = tl.load(q + h[:, None] * stride + tl.arange(0, D)[None, :], mask=(h < H)[:, None], other=0.0)
    return tl.split(tl.reshape(x, (BLOCK_H, D // 2, 2)))


@jit
def load_index_keys(
    keys: tl.tensor, n: tl.tensor, there: tl.tensor, dtype: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
    ROW: tl.constexpr, PTX: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The even and the odd columns [T, D/2] of index keys n [T] of one sequence, zeros where `there` is not."""
    G: tl.constexpr = D // 32
    row = keys + n[:, None] * ROW
    code = tl.load(row + tl.arange(0, D // 2)[None, :], mask=there[:, None], other=0)
    exponent = tl.load(row + (D // 2 + tl.arange(0, G))[None, :], mask=there[:, None], other=0)
    code = tl.reshape(code, (T, G, 16))
    if PTX:
        scale = (exponent.to(tl.int16) << 7).to(tl.bfloat16, bitcast=True)
        scale = tl.broadcast_to(scale[:, :, None], (T, G, 16))
        even, odd = tl.inline_asm_elementwise(
            _PTX_E2M1, "=r,=r,=r,=r,r,r,r", [code, scale], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        scale = power_of_two(exponent.to(tl.int32))[:, :, None]
        even = cast(e2m1_value(code.to(tl.int32) & 15) * scale, dtype)
        odd = cast(e2m1_value(code.to(tl.int32) >> 4) * scale, dtype)
    return tl.reshape(even, (T, D // 2)), tl.reshape(odd, (T, D // 2))


@jit
def store_key(x: tl.tensor, row: tl.tensor, D: tl.constexpr) -> None:
    """One key x [D], BF16 numbers in FP32, as codes at `row`: all but the last 64 columns rounded to FP8."""
    d, g = tl.arange(0, D), tl.arange(0, D // 64)
    y, exponent = fp8_steps(x, D, 64)
    code = tl.reshape(e4m3_code(round_e4m3(y)), (D,))
    bits = (x.to(tl.int32, bitcast=True) >> 16) & 0xFFFF
    tl.store(row + d, tl.where(d < D - 64, code, bits & 255).to(tl.uint8))
    tl.store(row + 64 + d, (bits >> 8).to(tl.uint8), mask=d >= D - 64)
    tl.store(row + D + 64 + g, tl.minimum(exponent, 255).to(tl.uint8), mask=g < D // 64 - 1)


@jit
def store_index_key(x: tl.tensor, row: tl.tensor, D: tl.constexpr) -> None:
    """One index key x [D], in FP32, rounded to FP4 and stored at `row` as codes."""
    groups = tl.reshape(x, (D // 32, 32))
    amax = tl.maximum(tl.max(tl.abs(groups), axis=1), 6.0 * 2.0**-126)
    exponent = power_of_two_exponent(amax * (1.0 / 6.0))
    y = groups * power_of_two(254 - exponent)[:, None]
    code = e2m1_code(tl.minimum(tl.maximum(y, -6.0), 6.0))
    low, high = tl.split(tl.reshape(code, (D // 2, 2)))
    tl.store(row + tl.arange(0, D // 2), (low | (high << 4)).to(tl.uint8))
    tl.store(row + D // 2 + tl.arange(0, D // 32), tl.minimum(exponent, 255).to(tl.uint8))

"""Packed FP4 codes: put in an order in which they become FP8 quickly, and decoded inside kernels.

An E2M1 code s ee m at bits 7, 4, 3 and 2 of an E4M3 number, whose exponent has a bias 6 higher, has its value times
2^-6, zero and the subnormal 0.5 included. One token reads 160 million codes a layer, and two instructions a code take
longer than the codes' way from memory. So they are put in an order (`arrange`) in which five instructions decode eight.
Of a row's 256 columns, 32 words of 32 bits, byte b of word 4q + i holds the codes of two columns:

    bit      7   6   5   4   3   2   1   0
    column   X   Y   Y   X   X   X   Y   Y       X = 64i + 4q + b, Y = X + 32
    of it    s   e   s   e   e   m   e   m       Y's upper e is bit 6

so that a mask leaves four codes of X as four numbers that lie side by side in a row of the matrix unit's operand. The
words 4q + i for all q become two operands [.., 32], whose columns share a scale. At bits 15, 8, 7 and 6 of a BF16
number a code has its value times 2^-126; there each two codes take five instructions.
"""
# ruff: noqa: N803  (constants)

from dataclasses import replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.interpreter import INTERPRETED, cast, jit
from flagrelease.engine.kernels.layout import ceil_div
from flagrelease.engine.kernels.quantisation.codes import e2m1_value
from flagrelease.engine.kernels.targets import TARGET
from flagrelease.engine.kernels.weights import ExpertWeights

BLOCK = 256  # columns that are arranged among themselves


def program(steps: str, *operands: dict[str, str]) -> Any:
    """PTX that does `steps` for each of `operands`."""
    return tl.constexpr("{ .reg .b32 a, b, n, t;" + "".join(steps.format(**each) for each in operands) + "}")


# Word w -> codes of X and of Y, each four E4M3 numbers.
E4M3_STEPS = """
    and.b32 {x}, {w}, 0x9C9C9C9C;
    shl.b32 a, {w}, 2;
    and.b32 a, a, 0x8C8C8C8C;
    shr.b32 b, {w}, 2;
    and.b32 b, b, 0x10101010;
    or.b32 {y}, a, b;
    """
_PTX_E4M3 = program(
    E4M3_STEPS,
    *({"w": f"${8 + i}", "x": f"${2 * i}", "y": f"${2 * i + 1}"} for i in range(4)),
)

# Two bytes of word w, which `pair` puts into upper halves -> their codes of X and of Y, each two BF16 numbers.
_PTX_BF16 = program(
    """
    prmt.b32 t, {w}, 0, {pair};
    shr.b32 a, t, 4;
    and.b32 a, a, 0x01C001C0;
    and.b32 b, t, 0x80008000;
    or.b32 {x}, a, b;
    shl.b32 a, t, 2;
    and.b32 a, a, 0x80008000;
    shr.b32 b, t, 2;
    and.b32 b, b, 0x00C000C0;
    or.b32 a, a, b;
    shr.b32 b, t, 6;
    and.b32 b, b, 0x01000100;
    or.b32 {y}, a, b;
    """,
    *(
        {"w": f"${8 + i}", "pair": ("0x1404", "0x3424")[p], "x": f"${4 * i + p}", "y": f"${4 * i + 2 + p}"}
        for i in range(2)
        for p in range(2)
    ),
)


@jit
def fp4_operands(words: tl.tensor, N: tl.constexpr, PTX: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Arranged words [N, 32] of 256 columns -> codes times 2^-6: eight tensors [N, 32], from column 32j on.

    `dtype` is E4M3, or BF16 where FP8 is emulated.
    """
    if PTX and dtype == tl.float8e4nv:
        return tl.inline_asm_elementwise(
            _PTX_E4M3,
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r",
            [words],
            dtype=(
                tl.float8e4nv,
                tl.float8e4nv,
                tl.float8e4nv,
                tl.float8e4nv,
                tl.float8e4nv,
                tl.float8e4nv,
                tl.float8e4nv,
                tl.float8e4nv,
            ),
            is_pure=True,
            pack=4,
        )
    else:  # noqa: RET505 - Triton compiles what follows a return
        even, odd = tl.split(tl.reshape(words, (N, 16, 2)))
        first, third = tl.split(tl.reshape(even, (N, 8, 2)))
        second, fourth = tl.split(tl.reshape(odd, (N, 8, 2)))
        return (
            _four(first, False, N, dtype),
            _four(first, True, N, dtype),
            _four(second, False, N, dtype),
            _four(second, True, N, dtype),
            _four(third, False, N, dtype),
            _four(third, True, N, dtype),
            _four(fourth, False, N, dtype),
            _four(fourth, True, N, dtype),
        )


@jit
def fp4_columns(words: tl.tensor, N: tl.constexpr, PTX: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """`fp4_operands` side by side: [N, 256].

    Nothing moves: a thread keeps the codes that it decoded, and they are where the matrix unit takes them.
    """
    w0, w1, w2, w3, w4, w5, w6, w7 = fp4_operands(words, N, PTX, dtype)
    even = tl.join(tl.join(w0, w4), tl.join(w2, w6))
    odd = tl.join(tl.join(w1, w5), tl.join(w3, w7))
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 4, 1)), (N, 256))


@jit
def fp4_bf16_operands(
    words: tl.tensor,
    f0: tl.tensor,
    f1: tl.tensor,
    f2: tl.tensor,
    f3: tl.tensor,
    N: tl.constexpr,
    PTX: tl.constexpr,
) -> tl.tensor:
    """Arranged words [N, 32] of 256 columns -> codes times 2^-126 and a power of two, as BF16: eight tensors [N, 32].

    Place 4q + 2h + c of tensor j = 4i + 2y + p, each but q 0 or 1, has column 128h + 64i + 32y + 4q + 2p + c: two of
    each word, as the operand of 16 bits takes them. f0 to f3, the powers, are BF16 [N, 32] for j / 2 = 0 to 3.
    """
    if PTX:
        t0, t1, t2, t3, t4, t5, t6, t7 = tl.inline_asm_elementwise(
            _PTX_BF16,
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r",
            [words],
            dtype=(
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
            ),
            is_pure=True,
            pack=2,
        )
        return t0 * f0, t1 * f0, t2 * f1, t3 * f1, t4 * f2, t5 * f2, t6 * f3, t7 * f3
    else:  # noqa: RET505 - Triton compiles what follows a return
        even, odd = tl.split(tl.reshape(words, (N, 16, 2)))
        return (
            _pair(even, f0, False, 0, N),
            _pair(even, f0, False, 1, N),
            _pair(even, f1, True, 0, N),
            _pair(even, f1, True, 1, N),
            _pair(odd, f2, False, 0, N),
            _pair(odd, f2, False, 1, N),
            _pair(odd, f3, True, 0, N),
            _pair(odd, f3, True, 1, N),
        )


@jit
def _pair(words: tl.tensor, factor: tl.tensor, Y: tl.constexpr, P: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    """The codes of columns X or Y in two bytes of words [N, 16], side by side: BF16 [N, 32]."""
    two = tl.join(_value(words >> (16 * P), Y), _value(words >> (16 * P + 8), Y))
    return cast(tl.reshape(two, (N, 32)) * (factor.to(tl.float32) * 2.0**-126), tl.bfloat16)


@jit
def _four(words: tl.tensor, Y: tl.constexpr, N: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """The codes of columns X or Y in the bytes of words [N, 8], side by side: [N, 32]."""
    outer = tl.join(_value(words, Y), _value(words >> 16, Y))
    inner = tl.join(_value(words >> 8, Y), _value(words >> 24, Y))
    return cast(tl.reshape(tl.join(outer, inner), (N, 32)) * 2.0**-6, dtype)


@jit
def _value(byte: tl.tensor, Y: tl.constexpr) -> tl.tensor:
    """One of the two codes in the low byte."""
    x = ((byte >> 4) & 8) | ((byte >> 2) & 7)
    y = ((byte >> 2) & 8) | ((byte >> 4) & 4) | (byte & 3)
    return e2m1_value(y if Y else x)


@jit
def _arrange_kernel(words_ptr: tl.tensor, stride: tl.tensor, R: tl.tensor, ROWS: tl.constexpr) -> None:
    """ROWS of a matrix seen as R rows of 256 columns; what a program stores depends on all that it loads."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = words_ptr + tl.program_id(0).to(tl.int64) * stride + row[:, None] * 32 + tl.arange(0, 32)[None, :]
    words = tl.load(at, mask=(row < R)[:, None], other=0)
    fours = tl.join(words & 0xFFFF, (words >> 16) & 0xFFFF)  # the codes of columns 4q to 4q + 3 of a group, at [.., q]
    fours = tl.permute(tl.reshape(fours, (ROWS, 4, 2, 8)), (0, 3, 1, 2))  # from [i, X or Y, q] to [q, i, X or Y]
    x, y = tl.split(tl.reshape(fours, (ROWS, 32, 2)))
    result = tl.zeros((ROWS, 32), tl.int32)
    for b in tl.static_range(4):
        u, v = x >> (4 * b), y >> (4 * b)
        byte = ((u & 8) << 4) | ((u & 7) << 2) | ((v & 8) << 2) | ((v & 4) << 4) | (v & 3)
        result |= byte << (8 * b)
    tl.store(at, result, mask=(row < R)[:, None])


def arrange(packed: Tensor) -> None:
    """Put packed codes [E, N, K/2] (uint8 or int8, K a multiple of 256) into the order above, in place.

    A matrix is contiguous; those of several experts need not be.
    """
    words = packed.view(torch.int32)
    E, N, K = words.shape
    if words.stride(2) != 1 or words.stride(1) != K or K % 32:
        raise ValueError(
            f"matrices {tuple(packed.shape)} with strides {packed.stride()}: rows of 256 columns are needed"
        )
    count = N * K // 32
    _arrange_kernel[(E, ceil_div(count, 64))](words, words.stride(0), count, ROWS=64)


def arrange_experts(experts: ExpertWeights) -> ExpertWeights:
    """See `reference.arrange_experts`: FP4 ones with E8M0 scales of 2^-126 to 2^65 and widths in blocks of 256.

    In place. Only where the kernels that read them were tuned: for PTX (and in the interpreter, for tests).
    """
    if not (INTERPRETED.value or TARGET.ptx):
        return experts
    blocks = experts.w1.shape[1] % BLOCK == 0 and experts.w2.shape[1] % BLOCK == 0
    if experts.format != "fp4" or experts.arranged or not blocks or not _plain_powers(experts):
        return experts
    for weights in (experts.w1, experts.w3, experts.w2):
        arrange(weights)
    return replace(experts, arranged=True, even=_are_even(experts))


def _plain_powers(experts: ExpertWeights) -> bool:
    """Whether every scale is an E8M0 byte that the kernels may take as an exponent, in FP32 and 2^62 higher in BF16."""
    for scale in (experts.s1, experts.s3, experts.s2):
        if scale is None or scale.element_size() != 1:
            return False
        least, most = scale.view(torch.uint8).aminmax()
        if least == 0 or most > 192:
            return False
    return True


def _are_even(experts: ExpertWeights) -> bool:
    """See `ExpertWeights.even`. The largest scale of a block less 2^6 has to be an E8M0 byte too."""
    (least1, most1), (least3, most3), (least2, most2) = (
        _extremes(scale, rows) for scale, rows in ((experts.s1, 64), (experts.s3, 64), (experts.s2, 128))
    )
    least, most = torch.minimum(least1, least3), torch.maximum(most1, most3)
    widest = max(int((most - least).max()), int((most2 - least2).max()))
    return widest <= 11 and min(int(most.min()), int(most2.min())) > 6


def _extremes(scale: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """The least and the largest byte of scales [E, N, K/32] in each block of `rows` x 128: int32 [E, N/rows, K/128]."""
    assert scale is not None, "FP4 weights have scales"
    E, N, groups = scale.shape
    blocks = scale.view(torch.uint8).reshape(E, N // rows, rows, groups // 4, 4)
    return blocks.amin((2, 4)).int(), blocks.amax((2, 4)).int()

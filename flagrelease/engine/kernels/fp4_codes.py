"""Packed FP4 codes: put in an order in which they become BF16 quickly, and decoded inside kernels.

An E2M1 code s ee m at the same bits of a BF16 number, whose exponent has a bias 126 higher, has its value times 2^-126,
zero and the subnormal 0.5 included. One token reads 160 million codes a layer, and an instruction a code takes as long
as their bytes do, so each 16 bits of four codes are put in an order (`arrange`) in which one mask finds a code:

    bit   15  14  13  12  11  10   9   8   7   6   5   4   3   2   1   0
    code  s0  s3  m3  s1  e3  e3  s2  e0  e0  m0  e1  e1  m1  e2  e2  m2

A word of 32 bits gives four pairs: codes j and j + 4. Two words make eight registers of two weights (`COLUMN_ORDER`).
"""
# ruff: noqa: N803  (constants)

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.codes import e2m1_value
from flagrelease.engine.kernels.interpreter import INTERPRETED, cast, jit
from flagrelease.engine.kernels.weights import ExpertWeights

SCALED = tl.constexpr(2.0**64)  # what `fp4_weights` leaves to be multiplied, so that BF16 can hold it


def compiles_ptx() -> bool:
    """Whether kernels become PTX, for which the inline assembly below is written."""
    return not INTERPRETED.value and bool(triton.runtime.driver.active.get_current_target().backend == "cuda")


@jit
def fp4_factor(scale: tl.tensor) -> tl.tensor:
    """Scales (E8M0 bytes up to 192, which is 2^65) as what `fp4_weights` multiplies with: 2^(byte - 127 + 126 - 64)."""
    return ((scale.to(tl.int16) + 62) << 7).to(tl.bfloat16, bitcast=True)


@jit
def fp4_weights(words: tl.tensor, factor: tl.tensor, N: tl.constexpr, W: tl.constexpr, PTX: tl.constexpr) -> tl.tensor:
    """Arranged words [N, W] and their factors -> BF16 weights times 2^-64, exactly: eight tensors [N, W].

    Of words w (even) and w + 1, tensor j < 4 has codes j and j + 4 of w in places w and w + 1; tensor j + 4 those of
    w + 1.
    """
    if PTX:
        t0, t1, t2, t3, t4, t5, t6, t7 = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 a, b, c;
            and.b32 $0, $8, 0x81C081C0;
            shl.b32 a, $8, 3;
            and.b32 $1, a, 0x81C081C0;
            shl.b32 a, $8, 6;
            and.b32 $2, a, 0x81C081C0;
            shl.b32 a, $8, 1;
            shr.b32 b, $8, 3;
            shr.b32 c, $8, 7;
            and.b32 a, a, 0x80008000;
            and.b32 b, b, 0x01800180;
            and.b32 c, c, 0x00400040;
            or.b32 a, a, b;
            or.b32 $3, a, c;
            and.b32 $4, $9, 0x81C081C0;
            shl.b32 a, $9, 3;
            and.b32 $5, a, 0x81C081C0;
            shl.b32 a, $9, 6;
            and.b32 $6, a, 0x81C081C0;
            shl.b32 a, $9, 1;
            shr.b32 b, $9, 3;
            shr.b32 c, $9, 7;
            and.b32 a, a, 0x80008000;
            and.b32 b, b, 0x01800180;
            and.b32 c, c, 0x00400040;
            or.b32 a, a, b;
            or.b32 $7, a, c;
            }
            """,
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r",
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
        return (
            t0 * factor,
            t1 * factor,
            t2 * factor,
            t3 * factor,
            t4 * factor,
            t5 * factor,
            t6 * factor,
            t7 * factor,
        )
    else:  # noqa: RET505 - Triton compiles what follows a return
        wide = factor.to(tl.float32) * 2.0**-126
        first, second = tl.split(tl.reshape(words, (N, W // 2, 2)))
        return (
            _pair(first, wide, 0, N, W),
            _pair(first, wide, 1, N, W),
            _pair(first, wide, 2, N, W),
            _pair(first, wide, 3, N, W),
            _pair(second, wide, 0, N, W),
            _pair(second, wide, 1, N, W),
            _pair(second, wide, 2, N, W),
            _pair(second, wide, 3, N, W),
        )


@jit
def _pair(words: tl.tensor, wide: tl.tensor, J: tl.constexpr, N: tl.constexpr, W: tl.constexpr) -> tl.tensor:
    """Codes J and J + 4 of each word, side by side, times `wide` [N, W]."""
    codes = tl.join(_code(words, J), _code(words >> 16, J))
    return cast(e2m1_value(tl.reshape(codes, (N, W))) * wide, tl.bfloat16)


@jit
def _code(half: tl.tensor, J: tl.constexpr) -> tl.tensor:
    """Code J of the four in the low 16 bits, as E2M1 has it."""
    if J == 3:
        return ((half >> 11) & 8) | ((half >> 9) & 6) | ((half >> 13) & 1)
    else:  # noqa: RET505 - Triton compiles what follows a return
        return ((half >> (12 - 3 * J)) & 8) | ((half >> (6 - 3 * J)) & 7)


@jit
def _arrange_kernel(words_ptr: tl.tensor, stride: tl.tensor, N: tl.tensor, BLOCK: tl.constexpr) -> None:
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = words_ptr + tl.program_id(0).to(tl.int64) * stride + i
    w = tl.load(at, mask=i < N, other=0)
    # Both halves at once: the masks stop what a shift carries over. Signs, then exponents and fractions.
    y = ((w << 12) & -2147450880) | ((w << 5) & 0x10001000) | ((w >> 2) & 0x02000200) | ((w >> 1) & 0x40004000)
    y |= ((w << 6) & 0x01C001C0) | ((w >> 1) & 0x00380038) | ((w >> 8) & 0x00070007)
    y |= ((w >> 3) & 0x0C000C00) | ((w << 1) & 0x20002000)
    tl.store(at, y, mask=i < N)


def arrange(packed: Tensor) -> None:
    """Put packed codes [E, N, K/2] (uint8 or int8, K a multiple of 8) into the order above, in place.

    A matrix is contiguous; those of several experts need not be.
    """
    words = packed.view(torch.int32)
    E, N, K = words.shape
    if words.stride(2) != 1 or words.stride(1) != K:
        raise ValueError(f"matrices {tuple(packed.shape)} with strides {packed.stride()} are not contiguous")
    _arrange_kernel[(E, triton.cdiv(N * K, 4096))](words, words.stride(0), N * K, BLOCK=4096)


def arrange_experts(experts: ExpertWeights) -> ExpertWeights:
    """See `reference.arrange_experts`: FP4 ones with E8M0 scales and widths in blocks of 128; in place.

    Only where the kernels that read them were tuned: for PTX (and in the interpreter, where they are tested).
    """
    if not (INTERPRETED.value or compiles_ptx()):
        return experts
    scale = experts.s1
    blocks = experts.w1.shape[1] % 128 == 0 and experts.w2.shape[1] % 128 == 0
    if experts.format != "fp4" or experts.arranged or not blocks or scale is None or scale.element_size() != 1:
        return experts
    for weights in (experts.w1, experts.w3, experts.w2):
        arrange(weights)
    return replace(experts, arranged=True)

"""Packed FP4 codes to BF16, for use inside kernels.

An E2M1 code s ee m is moved to the same bits of a BF16 number, whose exponent has a bias 126 higher: it has the code's
value times 2^-126, zero and the subnormal 0.5 included. On NVIDIA chips that takes two instructions a code, which
matters: one token reads 160 million codes a layer.
"""
# ruff: noqa: N803  (constants)

import triton
import triton.language as tl

from flagrelease.engine.kernels.codes import e2m1_value
from flagrelease.engine.kernels.interpreter import INTERPRETED, cast, jit

SCALED = tl.constexpr(2.0**64)  # what `fp4_weights` leaves to be multiplied, so that BF16 can hold it


def compiles_ptx() -> bool:
    """Whether kernels become PTX, for which the inline assembly below is written."""
    return not INTERPRETED.value and bool(triton.runtime.driver.active.get_current_target().backend == "cuda")


@jit
def fp4_factor(scale: tl.tensor) -> tl.tensor:
    """Scales (E8M0 bytes up to 192, which is 2^65) as what `fp4_weights` multiplies with: 2^(byte - 127 + 126 - 64)."""
    return ((scale.to(tl.int16) + 62) << 7).to(tl.bfloat16, bitcast=True)


@jit
def fp4_weights(words: tl.tensor, factor: tl.tensor, PTX: tl.constexpr) -> tl.tensor:
    """int32 words of eight codes and their factors -> BF16 weights times 2^-64, exactly: eight tensors, code by code."""
    if PTX:
        # Two words at a time. p holds byte b of both, each in the upper half of 16 bits: codes 2b and 2b + 1.
        c0, c1, c2, c3, c4, c5, c6, c7 = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 p, s, m;
            prmt.b32 p, $8, $9, 0x4000;
            shl.b32 s, p, 4;
            shr.b32 m, p, 2;
            and.b32 s, s, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $0, s, m;
            shr.b32 m, p, 6;
            and.b32 s, p, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $1, s, m;
            prmt.b32 p, $8, $9, 0x5010;
            shl.b32 s, p, 4;
            shr.b32 m, p, 2;
            and.b32 s, s, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $2, s, m;
            shr.b32 m, p, 6;
            and.b32 s, p, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $3, s, m;
            prmt.b32 p, $8, $9, 0x6020;
            shl.b32 s, p, 4;
            shr.b32 m, p, 2;
            and.b32 s, s, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $4, s, m;
            shr.b32 m, p, 6;
            and.b32 s, p, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $5, s, m;
            prmt.b32 p, $8, $9, 0x7030;
            shl.b32 s, p, 4;
            shr.b32 m, p, 2;
            and.b32 s, s, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $6, s, m;
            shr.b32 m, p, 6;
            and.b32 s, p, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $7, s, m;
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
            c0 * factor,
            c1 * factor,
            c2 * factor,
            c3 * factor,
            c4 * factor,
            c5 * factor,
            c6 * factor,
            c7 * factor,
        )
    else:  # noqa: RET505 - Triton compiles what follows a return
        wide = factor.to(tl.float32) * 2.0**-126
        return (
            _weight(words, 0, wide),
            _weight(words, 1, wide),
            _weight(words, 2, wide),
            _weight(words, 3, wide),
            _weight(words, 4, wide),
            _weight(words, 5, wide),
            _weight(words, 6, wide),
            _weight(words, 7, wide),
        )


@jit
def _weight(words: tl.tensor, code: tl.constexpr, wide: tl.tensor) -> tl.tensor:
    return cast(e2m1_value((words >> (4 * code)) & 15) * wide, tl.bfloat16)

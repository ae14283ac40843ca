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
def fp4_weights(packed: tl.tensor, factor: tl.tensor, PTX: tl.constexpr) -> tl.tensor:
    """Bytes of two codes and their factors -> BF16 weights times 2^-64, exactly.

    Returns the low nibbles', then the high ones': even columns, odd columns.
    """
    if PTX:
        # p holds two of four bytes, each in the upper half of 16 bits
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 p, s, m;
            prmt.b32 p, $4, 0, 0x1404;
            shl.b32 s, p, 4;
            shr.b32 m, p, 2;
            and.b32 s, s, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $0, s, m;
            shr.b32 m, p, 6;
            and.b32 s, p, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $2, s, m;
            prmt.b32 p, $4, 0, 0x3424;
            shl.b32 s, p, 4;
            shr.b32 m, p, 2;
            and.b32 s, s, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $1, s, m;
            shr.b32 m, p, 6;
            and.b32 s, p, 0x80008000;
            and.b32 m, m, 0x01C001C0;
            or.b32 $3, s, m;
            }
            """,
            "=r,=r,=r,=r,r",
            [packed],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
        return low * factor, high * factor
    else:  # noqa: RET505 - Triton compiles what follows a return
        codes = packed.to(tl.int32)
        wide = factor.to(tl.float32) * 2.0**-126
        low, high = e2m1_value(codes & 15) * wide, e2m1_value((codes >> 4) & 15) * wide
        return cast(low, tl.bfloat16), cast(high, tl.bfloat16)

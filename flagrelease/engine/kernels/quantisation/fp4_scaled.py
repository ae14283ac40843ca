"""Arranged FP4 codes decoded inside kernels to FP8 that contains their scales: see `fp4_codes` for the order."""
# ruff: noqa: N803  (constants)

import triton.language as tl

from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.quantisation.e4m3 import as_e4m3
from flagrelease.engine.kernels.quantisation.fp4_codes import E4M3_STEPS, fp4_operands, program

# Four E4M3 numbers {v}, codes times 2^-6, times two to the {k} / 8, which is 1 to 12: exponents of normal ones grow,
# and 0.5, which was a subnormal one, becomes normal. n: 1 in each byte of a number that was normal.
_WIDER = """
    and.b32 a, {v}, 0x18181818;
    and.b32 b, {v}, 0x04040404;
    add.u32 n, a, 0x78787878;
    shr.u32 n, n, 7;
    and.b32 n, n, 0x01010101;
    shr.u32 t, b, 2;
    or.b32 t, t, n;
    mul.lo.u32 t, t, {k};
    shl.b32 n, n, 2;
    and.b32 b, b, n;
    and.b32 {v}, {v}, 0x80808080;
    or.b32 {v}, {v}, a;
    or.b32 {v}, {v}, b;
    add.u32 {v}, {v}, t;
    """

# Word w, 8 times the exponents of X's and Y's factor -> as `_PTX_E4M3`, times these factors.
_PTX_SCALED = program(
    E4M3_STEPS
    + _WIDER.replace("{v}", "{x}").replace("{k}", "{kx}")
    + _WIDER.replace("{v}", "{y}").replace("{k}", "{ky}"),
    *(
        {"w": f"${8 + i}", "x": f"${2 * i}", "y": f"${2 * i + 1}", "kx": f"${12 + i}", "ky": f"${16 + i}"}
        for i in range(4)
    ),
)


@jit
def fp4_scaled_operands(
    words: tl.tensor, low: tl.tensor, high: tl.tensor, N: tl.constexpr, PTX: tl.constexpr, dtype: tl.constexpr
) -> tl.tensor:
    """`fp4_operands` times powers of two: two int32 [N] with four exponents each, 1 to 12, for 32 columns each.

    `dtype` is E4M3, or uint8 for the codes of it.
    """
    if PTX and dtype == tl.float8e4nv:
        place = tl.arange(0, 32) % 4
        exponents = tl.where((place < 2)[None, :], low[:, None], high[:, None]) >> (16 * (place % 2))[None, :]
        return tl.inline_asm_elementwise(
            _PTX_SCALED,
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r",
            [words, (exponents & 255) << 3, ((exponents >> 8) & 255) << 3],
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
        w0, w1, w2, w3, w4, w5, w6, w7 = fp4_operands(words, N, PTX, tl.bfloat16 if dtype == tl.uint8 else dtype)
        return (
            _times(w0, low, 0, dtype),
            _times(w1, low, 1, dtype),
            _times(w2, low, 2, dtype),
            _times(w3, low, 3, dtype),
            _times(w4, high, 0, dtype),
            _times(w5, high, 1, dtype),
            _times(w6, high, 2, dtype),
            _times(w7, high, 3, dtype),
        )


@jit
def _times(codes: tl.tensor, exponents: tl.tensor, PLACE: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Rows times two to the byte at PLACE of an int32."""
    power = ((((exponents >> (8 * PLACE)) & 255) + 127) << 23).to(tl.float32, bitcast=True)
    return as_e4m3(codes.to(tl.float32) * power[:, None], dtype)

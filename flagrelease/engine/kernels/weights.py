"""Stored weights as the operators take them: raw codes beside their scales, never converted on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.kernels.layout import ceil_div

FP8_BLOCK = 128  # rows and columns of an FP8 weight that share one scale; columns of an activation that do
FP8_TILE = 32  # rows and columns of an FP8 weight of V4.1 that share one scale
FP8_TILED = "fp8-32"  # `weight_format` of it
FP4_BLOCK = 32  # columns of an FP4 weight row (or of an indexer activation) that share one scale
MX_BLOCK = 32  # columns of an MXFP8 row, weight or activation, that share one scale
PACKED_FP4 = (torch.int8, torch.uint8)


def check_fp8_weight(w: Tensor, ws: Tensor) -> None:
    """Refuse anything but E4M3 codes [.., N, K] with scales [.., ceil(N/128), ceil(K/128)] in FP32 or E8M0."""
    if w.dtype != torch.float8_e4m3fn:
        raise ValueError(f"an FP8 weight holds float8_e4m3fn, not {w.dtype}")
    _check_scale(ws, _blocks(w, FP8_BLOCK), (torch.float8_e8m0fnu, torch.float32))


def check_tiled_weight(w: Tensor, ws: Tensor) -> None:
    """Refuse anything but E4M3 codes [.., N, K] with E8M0 scales [.., ceil(N/32), ceil(K/32)]."""
    if w.dtype != torch.float8_e4m3fn:
        raise ValueError(f"an FP8 weight holds float8_e4m3fn, not {w.dtype}")
    _check_scale(ws, _blocks(w, FP8_TILE), (torch.float8_e8m0fnu,))


def check_fp4_weight(w: Tensor, ws: Tensor) -> None:
    """Refuse anything but packed E2M1 codes [.., N, K/2] with E8M0 or FP32 scales [.., N, K/32]."""
    if w.dtype not in PACKED_FP4:
        raise ValueError(f"a packed FP4 weight holds int8 or uint8, not {w.dtype}")
    if 2 * w.shape[-1] % FP4_BLOCK:
        raise ValueError(f"a packed FP4 weight has a multiple of {FP4_BLOCK} columns, not {2 * w.shape[-1]}")
    _check_scale(ws, (*w.shape[:-1], 2 * w.shape[-1] // FP4_BLOCK), (torch.float8_e8m0fnu, torch.float32))


def check_row_weight(w: Tensor, ws: Tensor) -> None:
    """Refuse anything but INT8 or E4M3 codes [.., N, K] with an FP32 scale for each row, [.., N]."""
    if w.dtype not in (torch.int8, torch.float8_e4m3fn):
        raise ValueError(f"a weight with a scale for each row holds int8 or float8_e4m3fn, not {w.dtype}")
    _check_scale(ws, tuple(w.shape[:-1]), (torch.float32,))


def check_mx_weight(w: Tensor, ws: Tensor) -> None:
    """Refuse anything but E4M3 codes [.., N, K] with E8M0 scales as bytes (uint8) [.., N, K/32]."""
    if w.dtype != torch.float8_e4m3fn or w.shape[-1] % MX_BLOCK:
        raise ValueError(f"an MXFP8 weight holds float8_e4m3fn in blocks of 32 columns, not {w.dtype} {tuple(w.shape)}")
    _check_scale(ws, (*w.shape[:-1], w.shape[-1] // MX_BLOCK), (torch.uint8,))


def _blocks(w: Tensor, size: int) -> tuple[int, ...]:
    return (*w.shape[:-2], ceil_div(w.shape[-2], size), ceil_div(w.shape[-1], size))


def _check_scale(scale: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    if scale.dtype not in dtypes:  # an E8M0 byte read as an integer is a wrong number, not an error
        raise ValueError(f"scales are {' or '.join(map(str, dtypes))}, not {scale.dtype}")
    if tuple(scale.shape) != shape:
        raise ValueError(f"scales have shape {tuple(scale.shape)}; the weight needs {shape}")


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The routed experts that one rank owns, stacked: global expert `first + i` is row i of every tensor.

    | format | dtype | w1, w3 (gate, up) | w2 (down) | s1, s3 (E8M0 or FP32) | s2 |
    |---|---|---|---|---|---|
    | fp4 | int8, uint8 | [E, MI, H/2] | [E, H, MI/2] | [E, MI, H/32] | [E, H, MI/32] |
    | fp8 | float8_e4m3fn | [E, MI, H] | [E, H, MI] | [E, MI/128, H/128], rounded up | [E, H/128, MI/128] |
    | int8 | int8 | [E, MI, H] | [E, H, MI] | [E, MI], FP32 | [E, H], FP32 |
    | fp8-channel | float8_e4m3fn | [E, MI, H] | [E, H, MI] | [E, MI], FP32 | [E, H], FP32 |
    | mxfp8 | float8_e4m3fn | [E, MI, H] | [E, H, MI] | [E, MI, H/32], E8M0 as uint8 | [E, H, MI/32] |
    | (V4.1's FP8) | as mxfp8, its scales spread over the rows that share them | | | |
    | plain | BF16 or wider | [E, MI, H] | [E, H, MI] | None | None |

    `arranged`: the codes are in the order of a provider's kernels (`Operators.arrange_experts`), which alone read them.
    `even`: of arranged ones, scales of 128 x 128 (64 rows of w1 and of w3) span at most 2^11: FP8 holds their codes.
    """

    w1: Tensor
    w3: Tensor
    w2: Tensor
    s1: Tensor | None
    s3: Tensor | None
    s2: Tensor | None
    first: int
    arranged: bool = False
    even: bool = False

    def __post_init__(self) -> None:
        """Refuse tensors that do not fit the table above."""
        if not self.w1.dtype == self.w3.dtype == self.w2.dtype:
            raise ValueError(f"experts of mixed types: w1 {self.w1.dtype}, w3 {self.w3.dtype}, w2 {self.w2.dtype}")
        if self.format == FP8_TILED:
            raise ValueError("experts in tiles of 32 x 32 are taken with a scale for each row: see `spread_over_rows`")
        width = 2 if self.format == "fp4" else 1
        experts, inter, hidden = self.w1.shape[0], self.w1.shape[1], self.w1.shape[2] * width
        if self.w3.shape != self.w1.shape or tuple(self.w2.shape) != (experts, hidden, inter // width):
            raise ValueError(f"expert shapes disagree: w1 {self.w1.shape}, w3 {self.w3.shape}, w2 {self.w2.shape}")
        for weight, scale in ((self.w1, self.s1), (self.w3, self.s3), (self.w2, self.s2)):
            check_weight(weight, scale)

    @property
    def format(self) -> str:
        """See `weight_format`."""
        return weight_format(self.w1, self.s1)


_CHECKS = {
    "fp4": check_fp4_weight, "fp8": check_fp8_weight, "int8": check_row_weight, "fp8-channel": check_row_weight,
    "mxfp8": check_mx_weight, FP8_TILED: check_tiled_weight,
}  # fmt: skip


def weight_format(w: Tensor, ws: Tensor | None) -> str:
    """`fp4`, `fp8`, `fp8-32`, `int8`, `fp8-channel`, `mxfp8` or `plain`, by the dtypes and by how the scales lie.

    A scale for each row has one dimension less than its weight. MXFP8's scales are E8M0 kept as bytes. Where blocks of
    128 and tiles of 32 are as many, which is one of each, the scale is `fp8`.
    """
    if ws is not None and ws.dim() == w.dim() - 1:
        return "int8" if w.dtype == torch.int8 else "fp8-channel"
    if w.dtype in PACKED_FP4:
        return "fp4"
    if w.dtype != torch.float8_e4m3fn:
        return "plain"
    if ws is not None and ws.dtype == torch.uint8:
        return "mxfp8"
    tiled = ws is not None and ws.dtype == torch.float8_e8m0fnu and tuple(ws.shape) == _blocks(w, FP8_TILE)
    return FP8_TILED if tiled and _blocks(w, FP8_TILE) != _blocks(w, FP8_BLOCK) else "fp8"


def spread_over_rows(w: Tensor, ws: Tensor) -> Tensor:
    """The scales of a weight in tiles of 32 x 32 as MXFP8 has them: bytes [.., N, K/32]."""
    check_tiled_weight(w, ws)
    return ws.view(torch.uint8).repeat_interleave(FP8_TILE, -2)[..., : w.shape[-2], :].contiguous()


def check_weight(w: Tensor, ws: Tensor | None) -> None:
    """Refuse a weight whose scales do not fit its format."""
    fmt = weight_format(w, ws)
    if (ws is None) != (fmt == "plain"):
        raise ValueError(f"a {fmt} weight comes {'with' if ws is None else 'without'} scales")
    if ws is not None:
        _CHECKS[fmt](w, ws)

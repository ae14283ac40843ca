"""What decoding makes of x wq_a and x wkv, in Triton: the query latent, and the key in its cache.

Legend: B rows, S parts, QR latent columns, HD head dimension, R rotated columns. Program (b, 0) does the latent of row
b, program (b, 1) its key.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import check_positions, power_of_two_columns
from flagrelease.engine.kernels.row_vectors import fp8_rounded, normed, rounded, store_fp8, sum_parts, turned, turns


@early_kernel
def _latents_kernel(
    parts_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    kv_norm_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    kv_ptr: tl.tensor,
    qr_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    part_stride: tl.tensor,
    S: tl.tensor,
    QR: tl.tensor,
    kv_row: tl.tensor,
    first: tl.tensor,
    ring: tl.tensor,
    eps: tl.tensor,
    QUANTISE_KV: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HD: tl.constexpr,
    R: tl.constexpr,
) -> None:
    b = tl.program_id(0).to(tl.int64)
    dtype = kv_ptr.dtype.element_ty
    parts = parts_ptr + b * (QR + HD)
    # What is no kernel's result is loaded before the wait: weights, and what the step is given.
    if tl.program_id(1) == 0:
        d = tl.arange(0, BLOCK_Q)
        norm = tl.load(q_norm_ptr + d, mask=d < QR, other=0.0).to(tl.float32)
        wait_for_results()
        x = rounded(sum_parts(parts, d, d < QR, part_stride, S), dtype)
        x = normed(x, norm, QR, eps)
        tl.store(qr_ptr + b * QR + d, cast(x, dtype), mask=d < QR)
        if codes_ptr is not None:
            store_fp8(rounded(x, dtype), codes_ptr + b * QR, scales_ptr + b * (QR // 128), QR, BLOCK_Q)
    else:
        position = tl.load(positions_ptr + b)
        d = tl.arange(0, HD)
        norm = tl.load(kv_norm_ptr + d).to(tl.float32)
        cos, sin = turns(cos_ptr, sin_ptr, tl.maximum(position, 0), HD, R)
        wait_for_results()
        if position >= 0:
            x = rounded(sum_parts(parts, QR + d, d < HD, part_stride, S), dtype)
            x = rounded(turned(rounded(normed(x, norm, HD, eps), dtype), cos, sin, HD), dtype)
            if QUANTISE_KV:
                x = fp8_rounded(x, HD, R, 64)
            tl.store(kv_ptr + b * kv_row + (first + position % ring) * HD + d, cast(x, dtype))


def latents(
    parts: Tensor, q_norm: Tensor, kv_norm: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor, kv: Tensor,
    first: int, quantise: bool, quantise_kv: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See `reference.latents`. The head dimension is a power of two; kv's slots are contiguous."""
    S, B, _ = parts.shape
    QR, HD = len(q_norm), power_of_two_columns(kv)
    check_positions(positions, B)
    if quantise and QR % 128:
        raise ValueError(f"groups of 128 columns do not divide {QR}")
    qr = torch.empty(B, QR, dtype=kv.dtype, device=kv.device)
    codes = torch.empty(B, QR, dtype=torch.float8_e4m3fn, device=kv.device) if quantise else None
    scales = torch.empty(B, QR // 128, dtype=torch.float32, device=kv.device) if quantise else None
    _latents_kernel[(B, 2)](
        parts.contiguous(), q_norm, kv_norm, cos, sin, positions, kv, qr, codes, scales, B * (QR + HD), S, QR,
        kv.stride(0), first, kv.shape[1] - 1 - first, eps,
        QUANTISE_KV=quantise_kv, BLOCK_Q=max(128, triton.next_power_of_2(QR)), HD=HD, R=2 * cos.shape[1], num_warps=4,
    )  # fmt: skip
    return qr, codes, scales

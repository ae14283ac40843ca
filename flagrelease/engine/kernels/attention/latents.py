"""What decoding makes of x wq_a and x wkv, in Triton: the query latent, and the key in its cache.

Legend: B rows, T tokens, S parts, QR latent columns, HD head dimension, R rotated columns. Program (t, 0) does the
latent of token t, program (t, 1) its key.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.key_rows import row_bytes, store_key
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import check_positions, check_tokens, next_power_of_2
from flagrelease.engine.kernels.row_vectors import fp8_rounded, normed, rounded, store_fp8, sum_parts, turned, turns


@jit
def _query_latent(
    parts: tl.tensor,
    norm_ptr: tl.tensor,
    qr: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    part_stride: tl.tensor,
    S: tl.constexpr,
    QR: tl.tensor,
    eps: tl.tensor,
    BLOCK_Q: tl.constexpr,
) -> None:
    """Normed columns 0 to QR of one token, and their codes where pointers for them are given."""
    d = tl.arange(0, BLOCK_Q)
    norm = tl.load(norm_ptr + d, mask=d < QR, other=0.0).to(tl.float32)
    wait_for_results()
    dtype = qr.dtype.element_ty
    x = rounded(sum_parts(parts, d, d < QR, part_stride, S, S), dtype)
    x = normed(x, norm, QR, eps)
    tl.store(qr + d, cast(x, dtype), mask=d < QR)
    if codes is not None:
        store_fp8(rounded(x, dtype), codes, scales, QR, BLOCK_Q)


@jit
def _key(
    parts: tl.tensor,
    norm_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    position: tl.tensor,
    kv: tl.tensor,
    part_stride: tl.tensor,
    S: tl.constexpr,
    first: tl.tensor,
    ring: tl.tensor,
    eps: tl.tensor,
    dtype: tl.constexpr,
    QUANTISE: tl.constexpr,
    ROW: tl.constexpr,
    HD: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """The key of the token at `position`, from `parts` [HD] on, in its slot of the row's cache; none where it is -1."""
    d = tl.arange(0, HD)
    norm = tl.load(norm_ptr + d).to(tl.float32)
    cos, sin = turns(cos_ptr, sin_ptr, tl.maximum(position, 0), HD, R)
    wait_for_results()
    if position >= 0:
        x = rounded(sum_parts(parts, d, d < HD, part_stride, S, S), dtype)
        x = rounded(turned(rounded(normed(x, norm, HD, eps), dtype), cos, sin, HD), dtype)
        if ROW > 0:
            store_key(x, kv + (first + position % ring) * ROW, HD)
        else:
            if QUANTISE:
                x = fp8_rounded(x, HD, R, 64)
            tl.store(kv + (first + position % ring) * HD + d, cast(x, dtype))


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
    S: tl.constexpr,
    QR: tl.tensor,
    B: tl.tensor,
    kv_row: tl.tensor,
    first: tl.tensor,
    ring: tl.tensor,
    eps: tl.tensor,
    QUANTISE_KV: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HD: tl.constexpr,
    R: tl.constexpr,
) -> None:
    t = tl.program_id(0).to(tl.int64)
    parts = parts_ptr + t * (QR + HD)
    # Either loads what is no kernel's result before it waits: weights, and what the step is given.
    if tl.program_id(1) == 0:
        if codes_ptr is not None:
            codes_ptr += t * QR
            scales_ptr += t * (QR // 128)
        _query_latent(parts, q_norm_ptr, qr_ptr + t * QR, codes_ptr, scales_ptr, part_stride, S, QR, eps, BLOCK_Q)
    else:
        position = tl.load(positions_ptr + t)
        _key(
            parts + QR, kv_norm_ptr, cos_ptr, sin_ptr, position, kv_ptr + t % B * kv_row,
            part_stride, S, first, ring, eps, qr_ptr.dtype.element_ty, QUANTISE_KV, ROW, HD, R,
        )  # fmt: skip


def latents(
    parts: Tensor, q_norm: Tensor, kv_norm: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor, kv: Tensor,
    first: int, quantise: bool, quantise_kv: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See `reference.latents`. The head dimension is a power of two; kv's slots are contiguous."""
    S, T, _ = parts.shape
    QR, HD, ring = len(q_norm), len(kv_norm), kv.shape[1] - 1 - first
    dtype = torch.bfloat16 if kv.dtype == torch.uint8 else kv.dtype
    row = row_bytes(kv, dtype, HD)
    check_positions(positions, T)
    check_tokens(T, kv)
    if quantise and QR % 128:
        raise ValueError(f"groups of 128 columns do not divide {QR}")
    qr = torch.empty(T, QR, dtype=dtype, device=kv.device)
    codes = torch.empty(T, QR, dtype=torch.float8_e4m3fn, device=kv.device) if quantise else None
    scales = torch.empty(T, QR // 128, dtype=torch.float32, device=kv.device) if quantise else None
    _latents_kernel[(T, 2)](
        parts.contiguous(), q_norm, kv_norm, cos, sin, positions, kv, qr, codes, scales, T * (QR + HD), S, QR,
        len(kv), kv.stride(0), first, ring, eps,
        QUANTISE_KV=quantise_kv, ROW=row, BLOCK_Q=max(128, next_power_of_2(QR)), HD=HD, R=2 * cos.shape[1],
        num_warps=16,
    )  # fmt: skip
    return qr, codes, scales

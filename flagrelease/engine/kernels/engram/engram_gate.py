"""Engram's value mixed into the streams, in Triton: a program does a stream of a token. Legend: M streams, H hidden."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import next_power_of_2, rows
from flagrelease.engine.kernels.reference.v41 import DOT_FLOOR


@early_kernel
def _gate_kernel(
    x_ptr: tl.tensor,
    kv_ptr: tl.tensor,
    q_weight_ptr: tl.tensor,
    k_weight_ptr: tl.tensor,
    text_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    kv_stride: tl.tensor,
    H: tl.tensor,
    eps: tl.tensor,
    floor: tl.tensor,
    root: tl.tensor,
    BLOCK_H: tl.constexpr,
) -> None:
    t, m, M = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    h = tl.arange(0, BLOCK_H)
    weight = tl.load(q_weight_ptr + m * H + h, mask=h < H, other=0.0).to(tl.float32)
    weight = weight * tl.load(k_weight_ptr + m * H + h, mask=h < H, other=0.0).to(tl.float32)
    wait_for_results()
    x = tl.load(x_ptr + t * x_stride + m * H + h, mask=h < H, other=0.0).to(tl.float32)
    key = tl.load(kv_ptr + t * kv_stride + m * H + h, mask=h < H, other=0.0).to(tl.float32)
    value = tl.load(kv_ptr + t * kv_stride + M * H + h, mask=h < H, other=0.0).to(tl.float32)
    dot = tl.sum(x * weight * key, axis=0)
    dot = dot * tl.rsqrt(tl.sum(x * x, axis=0) / H + eps) * tl.rsqrt(tl.sum(key * key, axis=0) / H + eps) * root
    size = tl.sqrt(tl.maximum(tl.abs(dot), floor))
    gate = tl.sigmoid(tl.where(dot > 0.0, size, tl.where(dot < 0.0, -size, 0.0)))
    y = x + gate * value
    if text_ptr is not None:
        y = tl.where(tl.load(text_ptr + t) != 0, y, x)
    tl.store(y_ptr + (t * M + m) * H + h, cast(y, y_ptr.dtype.element_ty), mask=h < H)


def engram_gate(
    x: Tensor, kv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, text: Tensor | None = None
) -> Tensor:
    """See `reference.v41.engram_gate`."""
    *lead, M, H = x.shape
    given = (tuple(kv.shape), tuple(q_weight.shape), tuple(k_weight.shape))
    if given != ((*lead, (M + 1) * H), (M, H), (M, H)) or (text is not None and text.shape != x.shape[:-2]):
        raise ValueError(
            f"kv, q_weight and k_weight {given}, text {None if text is None else tuple(text.shape)} of streams "
            f"{tuple(x.shape)}"
        )
    x_rows, kv_rows = rows(x.flatten(-2)), rows(kv)
    y = x.new_empty(x.shape)
    _gate_kernel[(len(x_rows), M)](
        x_rows, kv_rows, q_weight.contiguous(), k_weight.contiguous(),
        None if text is None else text.contiguous().view(torch.uint8), y, x_rows.stride(0), kv_rows.stride(0), H, eps,
        DOT_FLOOR, H**-0.5, BLOCK_H=next_power_of_2(H), num_warps=8 if H > 2048 else 4,
    )  # fmt: skip
    return y

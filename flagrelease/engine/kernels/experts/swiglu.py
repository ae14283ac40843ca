"""Clamped SwiGLU in Triton. Legend: R rows, N columns; a program computes BLOCK_N columns of one row."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows
from flagrelease.engine.kernels.row_vectors import rounded, store_fp8


@jit
def clamped_swiglu(gate: tl.tensor, up: tl.tensor, limit: tl.tensor) -> tl.tensor:
    """silu(min(gate, limit)) * clamp(up, -limit, limit) of FP32 tiles; also the epilogue of the experts' kernel."""
    gate = tl.minimum(gate, limit)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    return gate / (1.0 + tl.exp(-gate)) * up


@early_kernel
def _swiglu_kernel(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    N: tl.tensor,
    limit: tl.tensor,
    BLOCK_N: tl.constexpr,
) -> None:
    """With scales, y is FP8 codes of what would be stored without them."""
    wait_for_results()
    r, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_N
    n = start + tl.arange(0, BLOCK_N)
    gate = tl.load(gate_ptr + r * gate_stride + n, mask=n < N, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + r * up_stride + n, mask=n < N, other=0.0).to(tl.float32)
    y = clamped_swiglu(gate, up, limit)
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + r)
    if scales_ptr is not None:
        y = rounded(y, gate_ptr.dtype.element_ty)
        store_fp8(y, y_ptr + r * N + start, scales_ptr + (r * N + start) // 128, N - start, BLOCK_N)
    else:
        tl.store(y_ptr + r * N + n, cast(y, y_ptr.dtype.element_ty), mask=n < N)


def swiglu(gate: Tensor, up: Tensor, limit: float, weight: Tensor | None = None) -> Tensor:
    """See `reference.swiglu`."""
    if gate.shape != up.shape or (weight is not None and weight.shape != gate.shape[:-1]):
        raise ValueError(f"SwiGLU of gate {tuple(gate.shape)}, up {tuple(up.shape)} and a weight of another shape")
    y = gate.new_empty(gate.shape)
    _launch(gate, up, None if weight is None else weight.float().contiguous(), y, None, limit)
    return y


def swiglu_quant(gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """See `reference.swiglu_quant`."""
    if gate.shape != up.shape or gate.dtype != up.dtype or gate.shape[-1] % 128:
        raise ValueError(f"SwiGLU of gate {tuple(gate.shape)} and up {tuple(up.shape)} in groups of 128 columns")
    N = gate.shape[-1]
    codes = torch.empty(gate.shape, dtype=torch.float8_e4m3fn, device=gate.device)
    scales = torch.empty(*gate.shape[:-1], N // 128, dtype=torch.float32, device=gate.device)
    _launch(gate, up, None, codes, scales, limit)
    return codes, scales


def _launch(gate: Tensor, up: Tensor, weight: Tensor | None, y: Tensor, scales: Tensor | None, limit: float) -> None:
    gate, up = rows(gate), rows(up)
    R, N = gate.shape
    block = min(1024, next_power_of_2(N))
    _swiglu_kernel[(R, ceil_div(N, block))](
        gate, up, weight, y, scales, gate.stride(0), up.stride(0), N, limit, BLOCK_N=block
    )

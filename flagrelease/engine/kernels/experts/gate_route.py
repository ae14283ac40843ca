"""The gate's parts to experts and weights in one launch, in Triton. Legend: B rows, S parts, E experts, K chosen."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.experts.routing import best_experts, load_bias, store_routes
from flagrelease.engine.kernels.layout import check_positions, next_power_of_2
from flagrelease.engine.kernels.linear.linear import sqrt_softplus
from flagrelease.engine.kernels.row_vectors import sum_parts


@early_kernel
def _gate_route_kernel(
    parts_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    table_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    part_stride: tl.tensor,
    S: tl.constexpr,
    E: tl.tensor,
    route_scale: tl.tensor,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    b = tl.program_id(0).to(tl.int64)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    bias = load_bias(bias_ptr, e, E, BLOCK_E)
    wait_for_results()
    position = tl.load(positions_ptr + b)
    scores = sqrt_softplus(sum_parts(parts_ptr + b * E, e, e < E, part_stride, S, S))
    if table_ptr is not None:
        token = tl.load(tokens_ptr + b).to(tl.int64)
        ids = tl.load(table_ptr + token * K + k, mask=k < K, other=0).to(tl.int32)
        weights = tl.sum(tl.where(ids[:, None] == e[None, :], scores[None, :], 0.0), axis=1)
        weights = tl.where(k < K, weights, 0.0)
    else:
        ids, weights = best_experts(scores, bias, e, E, K, BLOCK_E, BLOCK_K)
    ids = tl.where(position >= 0, ids, -1)
    store_routes(ids_ptr, weights_ptr, b, ids, weights, route_scale, K, BLOCK_K)


def gate_route(
    parts: Tensor, bias: Tensor | None, positions: Tensor, topk: int, route_scale: float
) -> tuple[Tensor, Tensor]:
    """See `reference.gate_route`."""
    bias = None if bias is None else bias.float().contiguous()
    return _launch(parts, bias, None, positions, positions, topk, route_scale)


def gate_route_hashed(
    parts: Tensor, tid2eid: Tensor, tokens: Tensor, positions: Tensor, route_scale: float
) -> tuple[Tensor, Tensor]:
    """See `reference.gate_route_hashed`."""
    return _launch(parts, None, tid2eid.contiguous(), tokens.contiguous(), positions, tid2eid.shape[1], route_scale)


def _launch(
    parts: Tensor, bias: Tensor | None, table: Tensor | None, tokens: Tensor, positions: Tensor, k: int, scale: float
) -> tuple[Tensor, Tensor]:
    S, B, E = parts.shape
    check_positions(positions, B)
    ids = torch.empty(B, k, dtype=torch.int32, device=parts.device)
    weights = torch.empty(B, k, dtype=torch.float32, device=parts.device)
    _gate_route_kernel[(B,)](
        parts.contiguous(), bias, table, tokens, positions, ids, weights, B * E, S, E, scale,
        K=k, BLOCK_E=next_power_of_2(E), BLOCK_K=next_power_of_2(k), num_warps=1,
    )  # fmt: skip
    return ids, weights

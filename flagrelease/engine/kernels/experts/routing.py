"""Routing in Triton: the best experts of a token, or those its id names. Legend: T tokens, E experts, K chosen."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import next_power_of_2, rows

MANY_TOKENS = 512  # whose programs fill a chip


@jit
def best_experts(
    scores: tl.tensor,
    bias: tl.tensor,
    e: tl.tensor,
    E: tl.tensor,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """The K best of score + bias, best first: ids and scores, both [BLOCK_K]."""
    k = tl.arange(0, BLOCK_K)
    # All in integers, which a warp reduces in one instruction. FP32 numbers order like them once negative ones, whose
    # bits order the other way round, are turned; -0 counts as 0.
    order = (scores + bias + 0.0).to(tl.int32, bitcast=True)
    order = tl.where(e < E, order ^ ((order >> 31) & 0x7FFFFFFF), -2147483648)
    bits = scores.to(tl.int32, bitcast=True)
    ids, weights = tl.zeros((BLOCK_K,), tl.int32), tl.zeros((BLOCK_K,), tl.int32)
    for slot in tl.static_range(K):
        # The lowest expert among the best: tl.argmax's tie rule differs between Triton versions.
        best = tl.min(tl.where(order == tl.max(order, axis=0), e, BLOCK_E), axis=0)
        ids = tl.where(k == slot, best, ids)
        weights = tl.where(k == slot, tl.sum(tl.where(e == best, bits, 0), axis=0), weights)
        order = tl.where(e == best, -2147483648, order)
    return ids, weights.to(tl.float32, bitcast=True)


@jit
def load_bias(bias_ptr: tl.tensor, e: tl.tensor, E: tl.tensor, BLOCK_E: tl.constexpr) -> tl.tensor:
    """[BLOCK_E], zero where there is none."""
    bias = tl.zeros((BLOCK_E,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + e, mask=e < E, other=0.0)
    return bias


@early_kernel
def _route_kernel(
    scores_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    scores_stride: tl.tensor,
    E: tl.tensor,
    route_scale: tl.tensor,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NEXT: tl.constexpr,
) -> None:
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    bias = load_bias(bias_ptr, e, E, BLOCK_E)
    wait_for_results(NEXT)
    scores = tl.load(scores_ptr + t * scores_stride + e, mask=e < E, other=0.0)
    ids, weights = best_experts(scores, bias, e, E, K, BLOCK_E, BLOCK_K)
    store_routes(ids_ptr, weights_ptr, t, ids, weights, route_scale, K, BLOCK_K)


@early_kernel
def _route_hashed_kernel(
    scores_ptr: tl.tensor,
    table_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    scores_stride: tl.tensor,
    route_scale: tl.tensor,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    token = tl.load(tokens_ptr + t).to(tl.int64)
    ids = tl.load(table_ptr + token * K + k, mask=k < K, other=0).to(tl.int32)
    weights = tl.load(scores_ptr + t * scores_stride + ids, mask=k < K, other=0.0)
    store_routes(ids_ptr, weights_ptr, t, ids, weights, route_scale, K, BLOCK_K)


@jit
def store_routes(
    ids_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    t: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    route_scale: tl.tensor,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Weights in proportion, their sum `route_scale`."""
    k = tl.arange(0, BLOCK_K)
    tl.store(ids_ptr + t * K + k, ids, mask=k < K)
    tl.store(weights_ptr + t * K + k, weights / tl.sum(weights, axis=0) * route_scale, mask=k < K)


def route(scores: Tensor, bias: Tensor | None, topk: int, route_scale: float) -> tuple[Tensor, Tensor]:
    """See `reference.route`."""
    if scores.dtype != torch.float32 or not 0 < topk <= scores.shape[-1]:
        raise ValueError(f"the best {topk} of scores {scores.dtype} {tuple(scores.shape)}; FP32 is routed")
    ids, weights = _routes(scores, topk)
    table = rows(scores)
    E = scores.shape[-1]
    _route_kernel[(len(table),)](
        table, None if bias is None else bias.float().contiguous(), ids, weights, table.stride(0), E, route_scale,
        K=topk, BLOCK_E=next_power_of_2(E), BLOCK_K=next_power_of_2(topk), NEXT=len(table) < MANY_TOKENS,
        num_warps=1,  # whose reductions take no barrier
    )  # fmt: skip
    return ids, weights


def route_hashed(scores: Tensor, tid2eid: Tensor, tokens: Tensor, route_scale: float) -> tuple[Tensor, Tensor]:
    """See `reference.route_hashed`."""
    if scores.dtype != torch.float32 or tokens.shape != scores.shape[:-1]:
        raise ValueError(f"tokens {tuple(tokens.shape)} and FP32 scores {scores.dtype} {tuple(scores.shape)}")
    k = tid2eid.shape[1]
    ids, weights = _routes(scores, k)
    table = rows(scores)
    _route_hashed_kernel[(len(table),)](
        table, tid2eid.contiguous(), tokens.contiguous(), ids, weights, table.stride(0), route_scale,
        K=k, BLOCK_K=next_power_of_2(k),
    )  # fmt: skip
    return ids, weights


def _routes(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*scores.shape[:-1], k)
    return torch.empty(shape, dtype=torch.int32, device=scores.device), scores.new_empty(shape)

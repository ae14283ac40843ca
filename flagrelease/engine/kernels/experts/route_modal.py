"""Routing of V4.1 in Triton: tokens of images have another bias. Legend: T tokens, E experts, K chosen."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.experts.routing import MANY_TOKENS, best_experts
from flagrelease.engine.kernels.layout import next_power_of_2, rows
from flagrelease.engine.kernels.reference.v41 import ROUTE_FLOOR


@early_kernel
def _route_modal_kernel(
    scores_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    bias_vl_ptr: tl.tensor,
    image_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    scores_stride: tl.tensor,
    E: tl.tensor,
    floor: tl.tensor,
    route_scale: tl.tensor,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NEXT: tl.constexpr,
) -> None:
    t = tl.program_id(0).to(tl.int64)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    bias = tl.load(bias_ptr + e, mask=e < E, other=0.0)
    if image_ptr is not None:
        bias_vl = tl.load(bias_vl_ptr + e, mask=e < E, other=0.0)
        bias = tl.where(tl.load(image_ptr + t) != 0, bias_vl, bias)
    wait_for_results(NEXT)
    scores = tl.load(scores_ptr + t * scores_stride + e, mask=e < E, other=0.0)
    ids, weights = best_experts(scores, bias, e, E, K, BLOCK_E, BLOCK_K)
    tl.store(ids_ptr + t * K + k, ids, mask=k < K)
    weights = weights / (tl.sum(weights, axis=0) + floor) * route_scale
    tl.store(weights_ptr + t * K + k, weights, mask=k < K)


def route_modal(
    scores: Tensor, bias: Tensor, bias_vl: Tensor, image: Tensor | None, topk: int, route_scale: float
) -> tuple[Tensor, Tensor]:
    """See `reference.v41.route_modal`. `image` is given to the step, not the result of a kernel."""
    T, E = scores.shape
    if scores.dtype != torch.float32 or not 0 < topk <= E or bias.shape != (E,) or bias_vl.shape != (E,):
        raise ValueError(
            f"the best {topk} of scores {scores.dtype} {tuple(scores.shape)} (FP32) by biases {tuple(bias.shape)}, "
            f"{tuple(bias_vl.shape)}"
        )
    if image is not None and (image.shape != (T,) or not image.is_contiguous()):
        raise ValueError(f"image {tuple(image.shape)}: one for each of {T} tokens, side by side")
    table = rows(scores)
    ids = torch.empty(T, topk, dtype=torch.int32, device=scores.device)
    weights = scores.new_empty(T, topk)
    _route_modal_kernel[(T,)](
        table, bias.float().contiguous(), bias_vl.float().contiguous(),
        None if image is None else image.view(torch.uint8), ids, weights, table.stride(0), E, ROUTE_FLOOR, route_scale,
        K=topk, BLOCK_E=next_power_of_2(E), BLOCK_K=next_power_of_2(topk), NEXT=T < MANY_TOKENS,
        num_warps=1,  # whose reductions take no barrier
    )  # fmt: skip
    return ids, weights

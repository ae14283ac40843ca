"""Routing tokens to experts, and computing the routed experts that a rank owns."""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.linear import linear
from flagrelease.engine.kernels.reference.precision import wide
from flagrelease.engine.kernels.reference.quantisation import act_quant_roundtrip, dequantise
from flagrelease.engine.kernels.reference.row_scales import mx_act_quant_roundtrip, row_linear, token_quant
from flagrelease.engine.kernels.reference.rows import swiglu
from flagrelease.engine.kernels.weights import FP8_BLOCK, ExpertWeights, weight_format


def gate_scores(x: Tensor, w: Tensor) -> Tensor:
    """sqrt(softplus(x W^T)) in FP32: x [.., H], w [E, H] -> [.., E]."""
    return torch.sqrt(torch.nn.functional.softplus(wide(x) @ wide(w).to(wide(x)).mT))


def route(scores: Tensor, bias: Tensor | None, topk: int, route_scale: float) -> tuple[Tensor, Tensor]:
    """The `topk` experts of score + bias; the bias chooses, it does not weigh.

    Args:
        scores: FP32 [.., E] from `gate_scores`.
        bias: FP32 [E] (gate.bias) or None.
        topk: experts a token.
        route_scale: routed_scaling_factor.

    Returns:
        ids int32 [.., topk], best first, the lower id first among equals; weights [.., topk] in scores' dtype,
        scores[ids] / sum * route_scale.
    """
    biased = scores if bias is None else scores + bias
    ids = biased.sort(stable=True, descending=True).indices[..., :topk]
    return ids.int(), _route_weights(scores, ids, route_scale)


def route_hashed(scores: Tensor, tid2eid: Tensor, tokens: Tensor, route_scale: float) -> tuple[Tensor, Tensor]:
    """The experts that the token's id names (the first layers of V4).

    Args:
        scores: FP32 [.., E].
        tid2eid: integers [V, k].
        tokens: integers [..], token ids.
        route_scale: routed_scaling_factor.

    Returns:
        ids int32 [.., k] and weights [.., k] as `route`.
    """
    ids = tid2eid[tokens.long()].long()
    return ids.int(), _route_weights(scores, ids, route_scale)


def _route_weights(scores: Tensor, ids: Tensor, route_scale: float) -> Tensor:
    weights = scores.gather(-1, ids)
    return weights / weights.sum(-1, keepdim=True) * route_scale


def moe_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    experts: ExpertWeights,
    swiglu_limit: float,
    quantise_activations: bool,
) -> Tensor:
    """Sum of the locally owned experts' outputs, to be all-reduced over ranks.

    An expert is w2 swiglu(w1 x, w3 x, limit, routing weight). As upstream, each product and the SwiGLU round to x's
    dtype, and the sum over experts is FP32.

    Args:
        x: [T, H].
        ids: int32 or int64 [T, k], global expert ids.
        weights: FP32 [T, k], routing weights.
        experts: the stacked local experts, in any stored format.
        swiglu_limit: see `swiglu`.
        quantise_activations: round the inputs of w1/w3 and of w2: with INT8 and FP8 by row as `token_quant` (such
            weights take no others), with MXFP8 as `mx_act_quant_roundtrip`, with all others to FP8 in groups of 128.

    Returns:
        FP32 (float64 for float64 x) [T, H]; zero for tokens without a local expert.
    """
    return sum_experts(x, ids, weights, experts, swiglu_limit, quantise_activations, FP8_BLOCK)


def sum_experts(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, swiglu_limit: float, quantise_activations: bool,
    group: int,
) -> Tensor:  # fmt: skip
    """`moe_experts`; `group`: columns of an input rounded to FP8 that share a scale."""
    if experts.arranged:
        raise ValueError("these experts are in the order of another provider's kernels")
    out = torch.zeros_like(wide(x))
    for local in range(experts.w1.shape[0]):
        token, slot = torch.where(ids == experts.first + local)
        if len(token) == 0:
            continue
        y = _expert(x[token], weights[token, slot], experts, local, swiglu_limit, quantise_activations, group)
        out.index_add_(0, token, y.to(out.dtype))
    return out


def arrange_experts(experts: ExpertWeights) -> ExpertWeights:
    """Experts as this provider's kernels read them; what is given may be changed in place. Here: as they are."""
    return experts


def _expert(
    x: Tensor, weight: Tensor, experts: ExpertWeights, local: int, swiglu_limit: float, quantise: bool, group: int
) -> Tensor:
    w1, w3, w2 = (
        (w[local], None if s is None else s[local])
        for w, s in ((experts.w1, experts.s1), (experts.w3, experts.s3), (experts.w2, experts.s2))
    )
    gate, up = (_product(x, *each, quantise, group) for each in (w1, w3))
    return _product(swiglu(gate, up, swiglu_limit, weight), *w2, quantise, group)


def _product(x: Tensor, w: Tensor, ws: Tensor | None, quantise: bool, group: int) -> Tensor:
    """x [T, K], rounded as the weight's format has it, times a stored weight [N, K] -> [T, N]."""
    if ws is not None and weight_format(w, ws) in ("int8", "fp8-channel"):
        if not quantise:
            raise ValueError("weights with a scale for each row take quantised activations")
        return row_linear(*token_quant(x, w.dtype), w, ws, x.dtype)
    if quantise:
        mx = weight_format(w, ws) == "mxfp8" and group == FP8_BLOCK
        x = mx_act_quant_roundtrip(x) if mx else act_quant_roundtrip(x, group)
    return linear(x, dequantise(w, ws), x.dtype)

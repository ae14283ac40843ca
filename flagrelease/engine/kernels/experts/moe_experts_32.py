"""V4.1's routed experts in Triton: those of `moe_experts`, whose inputs are rounded in groups of 32 columns."""

from torch import Tensor

from flagrelease.engine.kernels.experts.moe_experts import sum_experts
from flagrelease.engine.kernels.reference.v41 import ACT_GROUP
from flagrelease.engine.kernels.weights import ExpertWeights


def moe_experts_32(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, swiglu_limit: float, quantise_activations: bool
) -> Tensor:
    """See `reference.v41.moe_experts_32`. FP4 and plain experts as they are stored, not arranged."""
    return sum_experts(x, ids, weights, experts, swiglu_limit, quantise_activations, ACT_GROUP)

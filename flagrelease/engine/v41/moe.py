"""The feed-forward of one layer: a router with a bias for text and one for images, experts, and the shared expert.

Legend: B rows, S tokens, H hidden, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.weights import ExpertWeights
from flagrelease.engine.linear import Linear, join, project
from flagrelease.engine.parallel import Groups
from flagrelease.engine.schemes import scheme_of
from flagrelease.engine.v41.step import SharedStep
from flagrelease.engine.weights import Weights
from flagrelease.model.v41.config import V41Config

_NO_EXPERT = -1  # an id that no rank owns


@dataclass(frozen=True, slots=True)
class ModalMoE:
    """`gate` [E, H], `bias` and `bias_vl` FP32 [E]; `w13`: w1 and w3 of the shared expert as one.

    `rounds`: the inputs of experts are rounded.
    """

    gate: Tensor
    bias: Tensor
    bias_vl: Tensor
    topk: int
    route_scale: float
    experts: ExpertWeights
    rounds: bool
    w13: Linear
    w2: Linear
    swiglu_limit: float

    @classmethod
    def load(cls, weights: Weights, config: V41Config, experts: range) -> ModalMoE:
        """`experts`: the global ids that this rank owns."""
        gate, shared = weights.at("gate"), weights.at("shared_experts")
        routed = weights.experts(experts)
        return cls(
            gate=gate.plain("weight"),
            bias=gate.exact("bias"),
            bias_vl=gate.exact("bias_vl"),
            topk=config.num_experts_per_tok,
            route_scale=config.routed_scaling_factor,
            experts=routed,
            rounds=scheme_of(routed.format, weights.numerics).rounds,
            w13=join(shared.linear("w1"), shared.linear("w3"))[0],
            w2=shared.linear("w2"),
            swiglu_limit=config.swiglu_limit,
        )

    def forward(self, ops: Operators, y: Tensor, step: SharedStep, groups: Groups) -> Tensor:
        """y [B, S, H] -> [B, S, H]. The routed experts are summed over ranks in FP32."""
        flat = y.flatten(0, -2)
        scores = ops.gate_scores(flat, self.gate)
        image = step.image.flatten()
        ids, weights = ops.route_modal(scores, self.bias, self.bias_vl, image, self.topk, self.route_scale)
        if step.real is not None:
            ids = ids.where(step.real.flatten()[:, None], _NO_EXPERT)
        routed = ops.moe_experts_32(flat, ids, weights, self.experts, self.swiglu_limit, self.rounds)
        gate, up = project(ops, y, self.w13)[0].tensor_split(2, -1)
        (shared,) = project(ops, ops.swiglu(gate, up, self.swiglu_limit), self.w2)
        return ops.add(groups.all_sum(routed).view_as(y), shared, y.dtype)

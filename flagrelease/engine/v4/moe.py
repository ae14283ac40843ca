"""The feed-forward of one layer: a router, the routed experts of this rank, and the shared expert.

Legend: B rows, S tokens, H hidden, E experts, k experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.weights import ExpertWeights
from flagrelease.engine.linear import Linear, join, project, project_rounded
from flagrelease.engine.parallel import Groups
from flagrelease.engine.schemes import Rounded, Scheme, scheme_of
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig

_NO_EXPERT = -1  # an id that no rank owns


@dataclass(frozen=True, slots=True)
class Router:
    """`weight` [E, H]; then either `bias` FP32 [E], which chooses but does not weigh, or `tid2eid` int64 [V, k]."""

    weight: Tensor
    bias: Tensor | None
    tid2eid: Tensor | None
    topk: int
    route_scale: float

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig, hashed: bool) -> Router:
        """`hashed`: the token's id names its experts."""
        bias = None if hashed else weights.exact("bias")
        table = weights.exact("tid2eid") if hashed else None
        scale = config.routed_scaling_factor
        return cls(weights.plain("weight"), bias, table, config.num_experts_per_tok, scale)

    def route(self, ops: Operators, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, H], tokens [T] -> expert ids int32 [T, k], their weights FP32 [T, k]."""
        scores = ops.gate_scores(x, self.weight)
        if self.tid2eid is not None:
            return ops.route_hashed(scores, self.tid2eid, tokens, self.route_scale)
        return ops.route(scores, self.bias, self.topk, self.route_scale)


@dataclass(frozen=True, slots=True)
class MoE:
    """The shared expert is on every rank, the routed ones on their owners. `w13`: its w1 and w3 as one.

    `scheme`: of the routed experts.
    """

    router: Router
    experts: ExpertWeights
    scheme: Scheme
    w13: Linear
    w2: Linear
    swiglu_limit: float

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig, hashed: bool, experts: range) -> MoE:
        """`experts`: the global ids that this rank owns."""
        shared = weights.at("shared_experts")
        w13, _, _ = join(shared.linear("w1"), shared.linear("w3"))
        router = Router.load(weights.at("gate"), config, hashed)
        routed = weights.experts(experts)
        scheme = scheme_of(routed.format, weights.numerics)
        return cls(router, routed, scheme, w13, shared.linear("w2"), config.swiglu_limit)

    def arranged(self, ops: Operators) -> MoE:
        """With the experts as the operators' kernels read them."""
        return replace(self, experts=ops.arrange_experts(self.experts))

    def forward(self, ops: Operators, x: Rounded, tokens: Tensor, real: Tensor | None, groups: Groups) -> Tensor:
        """x [B, S, H], rounded for `w13`, tokens [B, S] -> [B, S, H]. The routed experts are summed over ranks in FP32.

        Of a spread step the result is this rank's share, [T / mp, H].

        `real`: bool [B, S], which of the tokens are more than padding; no expert reads the others. None: all are.
        """
        flat = x.plain.flatten(0, -2)
        ids, weights = self.router.route(ops, flat, tokens.flatten())
        if real is not None:
            ids = ids.where(real.flatten()[:, None], _NO_EXPERT)
        routed = ops.moe_experts(flat, ids, weights, self.experts, self.swiglu_limit, self.scheme.rounds)
        own = self.w13.round(ops, groups.own(flat)) if groups.is_spread else x
        return ops.add(groups.sum_tokens(routed).view_as(own.plain), self._shared(ops, own), x.plain.dtype)

    def _shared(self, ops: Operators, x: Rounded) -> Tensor:
        gate, up = project_rounded(ops, x, self.w13)[0].tensor_split(2, -1)
        if self.w2.scheme.fused:
            hidden = Rounded(gate, *ops.swiglu_quant(gate, up, self.swiglu_limit))
            return project_rounded(ops, hidden, self.w2)[0]
        return project(ops, ops.swiglu(gate, up, self.swiglu_limit), self.w2)[0]

"""The feed-forward of one layer for one token a row. Legend: B rows, H hidden, k experts a token."""

from __future__ import annotations

from torch import Tensor

from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import project_into, project_parts
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.v4.moe import MoE, Router


def feed_forward(ops: Operators, moe: MoE, x: Rounded, step: DecodeStep) -> Tensor:
    """x [B, H] -> parts [k + 1, B, H] of the output: each routed expert's, then the shared one's."""
    k = moe.router.topk
    y = x.plain.new_empty(len(x.plain), k + 1, x.plain.shape[1])
    ids, weights = _route(ops, moe.router, x.plain, step)
    # Not before the routes are known: its weights would be in the way of the router's, for which all others wait.
    shared = step.branches.beside(_run_shared, ops, moe, x, y[:, k])
    codes, scales = (x.codes, x.scales) if moe.scheme == moe.w13.scheme else (None, None)
    rounds = moe.scheme.rounds
    ops.expert_outputs(x.plain, codes, scales, ids, weights, moe.experts, moe.swiglu_limit, rounds, y[:, :k])
    shared()
    return y.transpose(0, 1)


def _run_shared(ops: Operators, moe: MoE, x: Rounded, out: Tensor) -> None:
    """x [B, H] through the shared expert to `out` [B, H]."""
    both = project_parts(ops, x, moe.w13)
    hidden = ops.swiglu_parts(both, moe.swiglu_limit, out.dtype, moe.w2.scheme.fused)
    project_into(ops, moe.w2.take(ops, *hidden), moe.w2, out)


def _route(ops: Operators, router: Router, x: Tensor, step: DecodeStep) -> tuple[Tensor, Tensor]:
    parts = ops.linear_parts(x, router.weight)
    if router.tid2eid is not None:
        return ops.gate_route_hashed(parts, router.tid2eid, step.tokens, step.positions, router.route_scale)
    return ops.gate_route(parts, router.bias, step.positions, router.topk, router.route_scale)

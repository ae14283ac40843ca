"""`Operators`: the operators of the forward pass as one object, so that the model names no implementation."""

from __future__ import annotations

from flagrelease.engine.kernels import reference


class Operators:
    """The provider `torch`, and the signatures of every other: a subclass replaces operators one by one."""

    name = "torch"

    act_quant = staticmethod(reference.act_quant)
    act_quant_roundtrip = staticmethod(reference.act_quant_roundtrip)
    add = staticmethod(reference.add)
    apply_rope = staticmethod(reference.apply_rope)
    compress_pool = staticmethod(reference.compress_pool)
    embedding = staticmethod(reference.embedding)
    fp4_act_quant = staticmethod(reference.fp4_act_quant)
    fp4_act_quant_roundtrip = staticmethod(reference.fp4_act_quant_roundtrip)
    fp4_linear = staticmethod(reference.fp4_linear)
    fp8_linear = staticmethod(reference.fp8_linear)
    gate_scores = staticmethod(reference.gate_scores)
    grouped_linear = staticmethod(reference.grouped_linear)
    hadamard = staticmethod(reference.hadamard)
    hc_head = staticmethod(reference.hc_head)
    hc_post = staticmethod(reference.hc_post)
    hc_pre = staticmethod(reference.hc_pre)
    hc_split_sinkhorn = staticmethod(reference.hc_split_sinkhorn)
    indexer_scores = staticmethod(reference.indexer_scores)
    linear = staticmethod(reference.linear)
    moe_experts = staticmethod(reference.moe_experts)
    rms_norm = staticmethod(reference.rms_norm)
    route = staticmethod(reference.route)
    route_hashed = staticmethod(reference.route_hashed)
    sparse_attention = staticmethod(reference.sparse_attention)
    swiglu = staticmethod(reference.swiglu)
    topk_visible = staticmethod(reference.topk_visible)

    def describe(self) -> dict[str, str]:
        """Operator -> the function that computes it, with its module: what a report says was run."""
        return {name: f"{getattr(self, name).__module__}.{getattr(self, name).__name__}" for name in OPERATORS}


OPERATORS = tuple(reference.__all__)

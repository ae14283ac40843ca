"""`Operators`: the operators of the forward pass as one object, so that the model names no implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.reference import v41
from flagrelease.engine.kernels.reference.experts import arrange_experts

if TYPE_CHECKING:
    from flagrelease.engine.kernels.exchange import Exchange

    OverRanks = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Exchange], tuple[Tensor, Tensor, Tensor]]


class Operators:
    """The provider `torch`, and the signatures of every other: a subclass replaces operators one by one."""

    name = "torch"
    captured = False  # whether a step of these operators can be: the definitions wait for the device here and there

    arrange_experts = staticmethod(arrange_experts)  # not an operator: what is done to weights once

    # `hc_post_mixes` of all ranks' parts. None: the ranks add them up before, so it is no operator with a definition.
    hc_post_mixes_over_ranks: OverRanks | None = None

    @staticmethod
    def start_after_all() -> None:
        """The next operator on this stream is to start when all that it depends on is done, not to be set up before.

        To be said where streams have parted or met, and where it would take the room of another stream's work.
        """

    act_quant = staticmethod(reference.act_quant)
    act_quant_roundtrip = staticmethod(reference.act_quant_roundtrip)
    add = staticmethod(reference.add)
    apply_rope = staticmethod(reference.apply_rope)
    best_visible = staticmethod(reference.best_visible)
    choose_entries = staticmethod(reference.choose_entries)
    compress_token = staticmethod(reference.compress_token)
    compress_windows = staticmethod(reference.compress_windows)
    decode_attention = staticmethod(reference.decode_attention)
    embedding = staticmethod(reference.embedding)
    expert_outputs = staticmethod(reference.expert_outputs)
    fp4_act_quant = staticmethod(reference.fp4_act_quant)
    fp4_act_quant_roundtrip = staticmethod(reference.fp4_act_quant_roundtrip)
    fp4_linear = staticmethod(reference.fp4_linear)
    fp8_grouped_linear = staticmethod(reference.fp8_grouped_linear)
    fp8_grouped_linear_parts = staticmethod(reference.fp8_grouped_linear_parts)
    fp8_linear = staticmethod(reference.fp8_linear)
    fp8_linear_parts = staticmethod(reference.fp8_linear_parts)
    gate_route = staticmethod(reference.gate_route)
    gate_route_hashed = staticmethod(reference.gate_route_hashed)
    gate_scores = staticmethod(reference.gate_scores)
    grouped_linear = staticmethod(reference.grouped_linear)
    hadamard = staticmethod(reference.hadamard)
    hc_head = staticmethod(reference.hc_head)
    hc_mixes = staticmethod(reference.hc_mixes)
    hc_post = staticmethod(reference.hc_post)
    hc_post_mixes = staticmethod(reference.hc_post_mixes)
    hc_post_parts = staticmethod(reference.hc_post_parts)
    hc_pre = staticmethod(reference.hc_pre)
    hc_pre_norm = staticmethod(reference.hc_pre_norm)
    hc_split_sinkhorn = staticmethod(reference.hc_split_sinkhorn)
    hc_weights = staticmethod(reference.hc_weights)
    index_queries = staticmethod(reference.index_queries)
    indexer_scores = staticmethod(reference.indexer_scores)
    latents = staticmethod(reference.latents)
    linear = staticmethod(reference.linear)
    linear_parts = staticmethod(reference.linear_parts)
    moe_experts = staticmethod(reference.moe_experts)
    mx_act_quant_roundtrip = staticmethod(reference.mx_act_quant_roundtrip)
    mx_linear = staticmethod(reference.mx_linear)
    race = staticmethod(reference.race)
    pack_index_keys = staticmethod(reference.pack_index_keys)
    pack_keys = staticmethod(reference.pack_keys)
    rms_norm = staticmethod(reference.rms_norm)
    round_parts = staticmethod(reference.round_parts)
    route = staticmethod(reference.route)
    route_hashed = staticmethod(reference.route_hashed)
    row_linear = staticmethod(reference.row_linear)
    sparse_attention = staticmethod(reference.sparse_attention)
    swiglu = staticmethod(reference.swiglu)
    swiglu_parts = staticmethod(reference.swiglu_parts)
    swiglu_quant = staticmethod(reference.swiglu_quant)
    token_quant = staticmethod(reference.token_quant)
    topk_visible = staticmethod(reference.topk_visible)

    # DeepSeek-V4.1's
    candidate_blocks = staticmethod(v41.candidate_blocks)
    engram_gate = staticmethod(v41.engram_gate)
    engram_rows = staticmethod(v41.engram_rows)
    fp4_keys_roundtrip = staticmethod(v41.fp4_keys_roundtrip)
    fp8_linear_32 = staticmethod(v41.fp8_linear_32)
    hc_collapse = staticmethod(v41.hc_collapse)
    hc_delayed = staticmethod(v41.hc_delayed)
    moe_experts_32 = staticmethod(v41.moe_experts_32)
    ngram_rows = staticmethod(v41.ngram_rows)
    route_modal = staticmethod(v41.route_modal)
    shared_attention = staticmethod(v41.shared_attention)
    topk_candidates = staticmethod(v41.topk_candidates)

    def describe(self) -> dict[str, str]:
        """Operator -> the function that computes it, with its module: what a report says was run."""
        return {name: f"{getattr(self, name).__module__}.{getattr(self, name).__name__}" for name in OPERATORS}


OPERATORS = tuple(reference.__all__)
V41_OPERATORS = tuple(v41.__all__)

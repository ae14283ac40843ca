"""The provider `triton`: every operator as a Triton kernel."""

from __future__ import annotations

from flagrelease.engine.kernels.attention.best_visible import best_visible
from flagrelease.engine.kernels.attention.candidate_blocks import candidate_blocks, topk_candidates
from flagrelease.engine.kernels.attention.choose_entries import choose_entries
from flagrelease.engine.kernels.attention.compress_token import compress_token
from flagrelease.engine.kernels.attention.compress_windows import compress_windows
from flagrelease.engine.kernels.attention.decode_attention import decode_attention
from flagrelease.engine.kernels.attention.hadamard import hadamard
from flagrelease.engine.kernels.attention.index_queries import index_queries
from flagrelease.engine.kernels.attention.indexer_scores import indexer_scores
from flagrelease.engine.kernels.attention.latents import latents
from flagrelease.engine.kernels.attention.pack_keys import pack_index_keys, pack_keys
from flagrelease.engine.kernels.attention.rope import apply_rope
from flagrelease.engine.kernels.attention.shared_attention import shared_attention
from flagrelease.engine.kernels.attention.sparse_attention import sparse_attention
from flagrelease.engine.kernels.attention.topk_visible import topk_visible
from flagrelease.engine.kernels.early_launch import start_after_all
from flagrelease.engine.kernels.engram.engram_gate import engram_gate
from flagrelease.engine.kernels.engram.engram_rows import engram_rows
from flagrelease.engine.kernels.engram.ngram_rows import ngram_rows
from flagrelease.engine.kernels.experts.gate_route import gate_route, gate_route_hashed
from flagrelease.engine.kernels.experts.moe_experts import expert_outputs, moe_experts
from flagrelease.engine.kernels.experts.moe_experts_32 import moe_experts_32
from flagrelease.engine.kernels.experts.route_modal import route_modal
from flagrelease.engine.kernels.experts.routing import route, route_hashed
from flagrelease.engine.kernels.experts.swiglu import swiglu, swiglu_quant
from flagrelease.engine.kernels.linear.add import add
from flagrelease.engine.kernels.linear.embedding import embedding
from flagrelease.engine.kernels.linear.fp8_linear_32 import fp8_linear_32
from flagrelease.engine.kernels.linear.linear import (
    fp4_linear,
    fp8_grouped_linear,
    fp8_grouped_linear_parts,
    fp8_linear,
    fp8_linear_parts,
    gate_scores,
    grouped_linear,
    linear,
    linear_parts,
)
from flagrelease.engine.kernels.linear.row_linear import mx_linear, row_linear
from flagrelease.engine.kernels.norms.hc_delayed import hc_collapse, hc_delayed
from flagrelease.engine.kernels.norms.hc_mixes import hc_mixes
from flagrelease.engine.kernels.norms.hc_post import hc_post, hc_post_parts
from flagrelease.engine.kernels.norms.hc_post_mixes import hc_post_mixes, hc_post_mixes_over_ranks
from flagrelease.engine.kernels.norms.hc_pre import hc_head, hc_pre
from flagrelease.engine.kernels.norms.hc_pre_norm import hc_pre_norm, hc_weights
from flagrelease.engine.kernels.norms.hc_split_sinkhorn import hc_split_sinkhorn
from flagrelease.engine.kernels.norms.rms_norm import rms_norm
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.quantisation.act_quant import act_quant, act_quant_roundtrip
from flagrelease.engine.kernels.quantisation.fp4_act_quant import fp4_act_quant, fp4_act_quant_roundtrip
from flagrelease.engine.kernels.quantisation.fp4_codes import arrange_experts
from flagrelease.engine.kernels.quantisation.fp4_keys import fp4_keys_roundtrip
from flagrelease.engine.kernels.quantisation.mx_act_quant import mx_act_quant_roundtrip
from flagrelease.engine.kernels.quantisation.round_parts import round_parts, swiglu_parts
from flagrelease.engine.kernels.quantisation.token_quant import token_quant
from flagrelease.engine.kernels.sampling.race import race


class TritonOperators(Operators):
    """All in Triton: no cuBLAS or cuDNN, no host synchronisation, shapes that depend on arguments' shapes only."""

    name = "triton"
    captured = True

    arrange_experts = staticmethod(arrange_experts)
    hc_post_mixes_over_ranks = staticmethod(hc_post_mixes_over_ranks)
    start_after_all = staticmethod(start_after_all)

    act_quant = staticmethod(act_quant)
    act_quant_roundtrip = staticmethod(act_quant_roundtrip)
    add = staticmethod(add)
    apply_rope = staticmethod(apply_rope)
    best_visible = staticmethod(best_visible)
    choose_entries = staticmethod(choose_entries)
    compress_token = staticmethod(compress_token)
    compress_windows = staticmethod(compress_windows)
    decode_attention = staticmethod(decode_attention)
    embedding = staticmethod(embedding)
    expert_outputs = staticmethod(expert_outputs)
    fp4_act_quant = staticmethod(fp4_act_quant)
    fp4_act_quant_roundtrip = staticmethod(fp4_act_quant_roundtrip)
    fp4_linear = staticmethod(fp4_linear)
    fp8_grouped_linear = staticmethod(fp8_grouped_linear)
    fp8_grouped_linear_parts = staticmethod(fp8_grouped_linear_parts)
    fp8_linear = staticmethod(fp8_linear)
    fp8_linear_parts = staticmethod(fp8_linear_parts)
    gate_route = staticmethod(gate_route)
    gate_route_hashed = staticmethod(gate_route_hashed)
    gate_scores = staticmethod(gate_scores)
    grouped_linear = staticmethod(grouped_linear)
    hadamard = staticmethod(hadamard)
    hc_head = staticmethod(hc_head)
    hc_mixes = staticmethod(hc_mixes)
    hc_post = staticmethod(hc_post)
    hc_post_mixes = staticmethod(hc_post_mixes)
    hc_post_parts = staticmethod(hc_post_parts)
    hc_pre = staticmethod(hc_pre)
    hc_pre_norm = staticmethod(hc_pre_norm)
    hc_split_sinkhorn = staticmethod(hc_split_sinkhorn)
    hc_weights = staticmethod(hc_weights)
    index_queries = staticmethod(index_queries)
    indexer_scores = staticmethod(indexer_scores)
    latents = staticmethod(latents)
    linear = staticmethod(linear)
    linear_parts = staticmethod(linear_parts)
    moe_experts = staticmethod(moe_experts)
    mx_act_quant_roundtrip = staticmethod(mx_act_quant_roundtrip)
    mx_linear = staticmethod(mx_linear)
    race = staticmethod(race)
    pack_index_keys = staticmethod(pack_index_keys)
    pack_keys = staticmethod(pack_keys)
    rms_norm = staticmethod(rms_norm)
    round_parts = staticmethod(round_parts)
    route = staticmethod(route)
    route_hashed = staticmethod(route_hashed)
    row_linear = staticmethod(row_linear)
    sparse_attention = staticmethod(sparse_attention)
    swiglu = staticmethod(swiglu)
    swiglu_parts = staticmethod(swiglu_parts)
    swiglu_quant = staticmethod(swiglu_quant)
    token_quant = staticmethod(token_quant)
    topk_visible = staticmethod(topk_visible)

    # DeepSeek-V4.1's
    candidate_blocks = staticmethod(candidate_blocks)
    engram_gate = staticmethod(engram_gate)
    engram_rows = staticmethod(engram_rows)
    fp4_keys_roundtrip = staticmethod(fp4_keys_roundtrip)
    fp8_linear_32 = staticmethod(fp8_linear_32)
    hc_collapse = staticmethod(hc_collapse)
    hc_delayed = staticmethod(hc_delayed)
    moe_experts_32 = staticmethod(moe_experts_32)
    ngram_rows = staticmethod(ngram_rows)
    route_modal = staticmethod(route_modal)
    shared_attention = staticmethod(shared_attention)
    topk_candidates = staticmethod(topk_candidates)

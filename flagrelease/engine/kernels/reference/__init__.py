"""The operators in plain torch: their definition, the CPU path, and what every other implementation is tested against.

Contract of all: leading dimensions are free unless said; nothing is written but `out`; results take the input's dtype
unless said; float64 in gives float64 out, for oracles.
"""

from flagrelease.engine.kernels.reference.attention import (
    compress_windows,
    indexer_scores,
    sparse_attention,
    topk_visible,
)
from flagrelease.engine.kernels.reference.decoding import (
    best_visible,
    choose_entries,
    compress_token,
    decode_attention,
    expert_outputs,
    gate_route,
    gate_route_hashed,
    index_queries,
    latents,
)
from flagrelease.engine.kernels.reference.experts import gate_scores, moe_experts, route, route_hashed
from flagrelease.engine.kernels.reference.hyper_connections import (
    hc_head,
    hc_mixes,
    hc_post,
    hc_post_mixes,
    hc_post_parts,
    hc_pre,
    hc_pre_norm,
    hc_split_sinkhorn,
    hc_weights,
)
from flagrelease.engine.kernels.reference.key_rows import pack_index_keys, pack_keys
from flagrelease.engine.kernels.reference.linear import fp4_linear, fp8_linear, grouped_linear, linear
from flagrelease.engine.kernels.reference.parts import (
    fp8_grouped_linear,
    fp8_grouped_linear_parts,
    fp8_linear_parts,
    linear_parts,
    round_parts,
    swiglu_parts,
)
from flagrelease.engine.kernels.reference.quantisation import (
    act_quant,
    act_quant_roundtrip,
    fp4_act_quant,
    fp4_act_quant_roundtrip,
)
from flagrelease.engine.kernels.reference.row_scales import mx_act_quant_roundtrip, mx_linear, row_linear, token_quant
from flagrelease.engine.kernels.reference.rows import (
    add,
    apply_rope,
    embedding,
    hadamard,
    rms_norm,
    swiglu,
    swiglu_quant,
)
from flagrelease.engine.kernels.reference.sampling import race

__all__ = [
    "act_quant",
    "act_quant_roundtrip",
    "add",
    "apply_rope",
    "best_visible",
    "choose_entries",
    "compress_token",
    "compress_windows",
    "decode_attention",
    "embedding",
    "expert_outputs",
    "fp4_act_quant",
    "fp4_act_quant_roundtrip",
    "fp4_linear",
    "fp8_grouped_linear",
    "fp8_grouped_linear_parts",
    "fp8_linear",
    "fp8_linear_parts",
    "gate_route",
    "gate_route_hashed",
    "gate_scores",
    "grouped_linear",
    "hadamard",
    "hc_head",
    "hc_mixes",
    "hc_post",
    "hc_post_mixes",
    "hc_post_parts",
    "hc_pre",
    "hc_pre_norm",
    "hc_split_sinkhorn",
    "hc_weights",
    "index_queries",
    "indexer_scores",
    "latents",
    "linear",
    "linear_parts",
    "moe_experts",
    "mx_act_quant_roundtrip",
    "mx_linear",
    "pack_index_keys",
    "pack_keys",
    "race",
    "rms_norm",
    "round_parts",
    "route",
    "route_hashed",
    "row_linear",
    "sparse_attention",
    "swiglu",
    "swiglu_parts",
    "swiglu_quant",
    "token_quant",
    "topk_visible",
]

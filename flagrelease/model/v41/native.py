"""DeepSeek's `inference/config.json` of V4.1: flat, under the names of its ModelArgs."""

from __future__ import annotations

from typing import Any

from flagrelease.model.v41.config import V41Config

# Key of config.json -> key of ModelArgs, where the names differ.
_RENAMED = {
    "hidden_size": "dim",
    "moe_intermediate_size": "moe_inter_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_experts_per_tok": "n_activated_experts",
    "scoring_func": "score_func",
    "routed_scaling_factor": "route_scale",
    "qk_rope_head_dim": "rope_head_dim",
    "rms_norm_eps": "norm_eps",
    "sliding_window": "window_size",
    "kv_source_layer_ids": "kv_source_layers",
    "index_source_layer_ids": "index_source_layers",
    "candidate_source_layer_id": "candidate_source_layer",
    "engram_pad_token_id": "engram_pad_id",
}
_SAME = (
    "vocab_size", "n_routed_experts", "n_shared_experts", "swiglu_limit", "q_lora_rank", "head_dim", "o_groups",
    "o_lora_rank", "rope_theta", "compress_rope_theta", "compress_ratios", "index_n_heads", "index_head_dim",
    "index_topk", "candidate_topk_blocks", "candidate_block_size", "hc_mult", "hc_sinkhorn_iters", "hc_eps",
    "engram_layer_ids", "engram_vocab_size", "engram_num_embeddings", "engram_max_ngram_size", "engram_n_heads",
    "engram_head_dim", "engram_compressed_vocab_size", "image_token_id",
)  # fmt: skip
_OF_DRAFTS = {
    "dspark_block_size": "dspark_block_size",
    "dspark_noise_token_id": "dspark_noise_token_id",
    "dspark_target_layer_ids": "dspark_target_layer_ids",
    "dspark_markov_rank": "dspark_markov_rank",
    "dspark_n_routed_experts": "dspark_n_routed_experts",
    "dspark_num_experts_per_tok": "dspark_n_activated_experts",
}
_OF_VISION = {
    "num_hidden_layers": "vision_n_layers",
    "hidden_size": "vision_dim",
    "num_attention_heads": "vision_n_heads",
    "intermediate_size": "vision_inter_dim",
    "patch_size": "vision_patch_size",
    "downsample_ratio": "vision_downsample_ratio",
    "max_image_tokens": "vision_max_n_token",
    "min_pixels": "vision_min_pixels",
    "max_wh_ratio": "vision_max_wh_ratio",
    "rope_theta": "vision_rope_theta",
}
_ROPE = {
    "factor": "rope_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
    "original_max_position_embeddings": "original_seq_len",
}  # fmt: skip


def native_arguments(config: V41Config) -> dict[str, Any]:
    """The model part of DeepSeek's `inference/config.json`: the keys of its ModelArgs that the config decides."""
    values = config.model_dump()
    native = {_RENAMED.get(key, key): values[key] for key in (*_RENAMED, *_SAME)}
    native |= {name: values["rope_scaling"][key] for key, name in _ROPE.items()}
    native |= {name: values["vision_config"][key] for key, name in _OF_VISION.items()}
    native["n_mtp_layers"] = config.n_mtp_layers
    native |= {name: values[key] for key, name in _OF_DRAFTS.items() if values[key] is not None}
    return {key: _as_json(key, value) for key, value in native.items()}


def _as_json(key: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    # DeepSeek writes 10000, not 10000.0, and 10.0 for the limit of the activation
    whole = isinstance(value, float) and value.is_integer() and key not in ("swiglu_limit", "route_scale")
    return int(value) if whole else value

"""DeepSeek-V4.1 checkpoints with random weights, of any dimensions, in the form DeepSeek publishes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from flagrelease.model.synthetic import AS_PUBLISHED, Stored, write_shards
from flagrelease.model.tensors import TensorSpec
from flagrelease.model.v41.config import V41Config, parse_config
from flagrelease.model.v41.inventory import inventory


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A `config.json` of the whole architecture at dimensions that mp8 cuts at whole blocks; about 3 MB of weights.

    Every kind of layer is there: all ratios, sources of the index that are and that are not sources of keys, Engram in
    a layer with and in one without compressed keys, three draft stages, a vision tower of two layers. The rows of its
    Engram tables are sums of the primes that follow `engram_vocab_size`, one for each order and head, as in DeepSeek's.
    `changes` are of `text_config`.
    """
    text: dict[str, Any] = {
        "model_type": "deepseek_v41_text", "vocab_size": 512, "hidden_size": 128, "moe_intermediate_size": 96,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64,
        "qk_rope_head_dim": 32, "q_lora_rank": 64, "o_lora_rank": 32, "o_groups": 8, "hidden_act": "silu",
        "swiglu_limit": 10.0, "rms_norm_eps": 1e-20, "attention_bias": False, "max_position_embeddings": 1048576,
        "rope_theta": 10000, "rope_scaling": {"rope_type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
                                              "original_max_position_embeddings": 65536},
        "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 2, "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 1.5, "sliding_window": 16,
        "compress_ratios": [0, 0, 2, 2, 2, 1, 1, 1, 0, 0, 0], "compress_rope_theta": 160000,
        "kv_source_layer_ids": [2, 4, 5], "index_source_layer_ids": [2, 4, 5, 7], "index_n_heads": 8,
        "index_head_dim": 32, "index_topk": 16, "candidate_source_layer_id": 5, "candidate_topk_blocks": 8,
        "candidate_block_size": 4, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-06,
        "engram_layer_ids": [1, 4], "engram_num_embeddings": [1916, 2148], "engram_max_ngram_size": 4,
        "engram_vocab_size": 300, "engram_n_heads": 2, "engram_head_dim": 64, "engram_pad_token_id": 2,
        "engram_compressed_vocab_size": 400, "num_nextn_predict_layers": 3, "dspark_block_size": 5,
        "dspark_noise_token_id": 3, "dspark_target_layer_ids": [5, 6, 7], "dspark_markov_rank": 32,
        "dspark_n_routed_experts": 8, "dspark_num_experts_per_tok": 2,
    }  # fmt: skip
    vision = {
        "model_type": "deepseek_v41_vision", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2,
        "intermediate_size": 48, "patch_size": 14, "rope_theta": 10000, "downsample_ratio": 3,
        "max_image_tokens": 1024, "min_pixels": 295936, "max_wh_ratio": None,
    }  # fmt: skip
    return {
        "architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41", "dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "image_token_id": 500,
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32],
                                "scale_fmt": "ue8m0", "expert_dtype": "fp4"},
        "text_config": text | changes, "vision_config": vision,
    }  # fmt: skip


def write_checkpoint(
    folder: Path, config: dict[str, Any], stored: Stored = AS_PUBLISHED, seed: int = 0, holes: bool = False
) -> None:
    """Write a checkpoint: files for vision, embed, each layer, head, each draft stage and each Engram table.

    With `holes` the data are holes in sparse files.
    """
    parsed = parse_config(config, folder)
    units: dict[str, list[TensorSpec]] = defaultdict(list)
    for spec in inventory(parsed).values():
        units[_unit(spec.name)].append(spec)
    write_shards(folder, [units[unit] for unit in _order(parsed)], parsed, config, stored, seed, holes)


def _order(config: V41Config) -> list[str]:
    layers = [f"layers.{layer}" for layer in range(config.num_hidden_layers)]
    stages = [f"mtp.{stage}" for stage in range(config.n_mtp_layers)]
    return [
        "vision",
        "embed",
        *layers,
        "head",
        *stages,
        *(f"layers.{layer}.engram" for layer in config.engram_layer_ids),
    ]


def _unit(name: str) -> str:
    first, second, third, *_ = [*name.split("."), "", ""]
    if first in ("layers", "mtp"):
        return f"{first}.{second}.engram" if third == "engram" else f"{first}.{second}"
    if first in ("head", "norm"):
        return "head"
    return first if first == "embed" else "vision"

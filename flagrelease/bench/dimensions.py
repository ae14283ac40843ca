"""Dimensions to measure with: those of the published models, and small ones for a CPU."""

from __future__ import annotations

from typing import Any, Literal, get_args

from flagrelease.errors import UsageError
from flagrelease.model.v4.config import ModelConfig, parse_config

DimensionsName = Literal["flash", "pro", "tiny"]

# The config of V4-Flash, preview revision.
FLASH: dict[str, Any] = {
    "model_type": "deepseek_v4", "vocab_size": 129280, "hidden_size": 4096, "num_hidden_layers": 43,
    "num_hash_layers": 3, "num_nextn_predict_layers": 1, "num_attention_heads": 64, "head_dim": 512,
    "qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_lora_rank": 1024, "o_groups": 8, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6, "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0, "index_n_heads": 64, "index_head_dim": 128,
    "index_topk": 512, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6,
    "sliding_window": 128, "rope_theta": 10000.0, "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "original_max_position_embeddings": 65536,
    },
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0], "max_position_embeddings": 1048576, "bos_token_id": 0,
    "eos_token_id": 1, "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
}  # fmt: skip

# That, the config of V4-Pro, and what a test can afford.
_DIMENSIONS: dict[DimensionsName, dict[str, Any]] = {
    "flash": FLASH,
    "pro": FLASH | {
        "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536, "o_groups": 16,
        "moe_intermediate_size": 3072, "n_routed_experts": 384, "routed_scaling_factor": 2.5, "index_topk": 1024,
        "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0],
    },
    "tiny": FLASH | {
        "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 4, "num_hash_layers": 1, "num_attention_heads": 4,
        "head_dim": 128, "q_lora_rank": 128, "o_lora_rank": 128, "o_groups": 2, "moe_intermediate_size": 128,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "index_n_heads": 16, "index_topk": 16, "sliding_window": 32,
        "compress_ratios": [0, 4, 128, 4, 0],
    },
}  # fmt: skip


# What the releases with DSpark (V4-Flash-0731, V4-Pro-0813) have in place of the preview's draft stage: three stages.
_STAGES = 3
_RANKS: dict[DimensionsName, int] = {"flash": 256, "pro": 512, "tiny": 32}


def dimensions(
    name: str, layers: int | None = None, experts: int | None = None, *, dspark: bool = False
) -> ModelConfig:
    """The config called `name`, cut to its first `layers` layers and `experts` routed experts.

    `dspark`: with DSpark's draft stages, which read the last layers; else with the preview's.

    Raises:
        UsageError: an unknown name, or more layers or experts than there are.
    """
    if name not in get_args(DimensionsName):
        raise UsageError(f"dimensions {name!r}: known are {', '.join(get_args(DimensionsName))}")
    raw = dict(_DIMENSIONS[name])  # type: ignore[index]
    ratios = raw["compress_ratios"]
    if layers is not None:
        if not 0 < layers <= raw["num_hidden_layers"]:
            raise UsageError(f"{layers} layers: {name} has {raw['num_hidden_layers']}")
        raw |= {"num_hidden_layers": layers, "compress_ratios": [*ratios[:layers], ratios[-1]]}
    if experts is not None:
        if not raw["num_experts_per_tok"] <= experts <= raw["n_routed_experts"]:
            raise UsageError(
                f"{experts} experts: {name} has {raw['n_routed_experts']}, and a token takes "
                f"{raw['num_experts_per_tok']}"
            )
        raw |= {"n_routed_experts": experts}
    if dspark:
        depth = raw["num_hidden_layers"]
        if depth < _STAGES:
            raise UsageError(f"{depth} layers: DSpark's stages read {_STAGES}")
        raw |= {
            "dspark_block_size": 5, "dspark_noise_token_id": min(128799, raw["vocab_size"] - 1),
            "dspark_target_layer_ids": list(range(depth - _STAGES, depth)),
            "dspark_markov_rank": _RANKS[name],  # type: ignore[index]
            "compress_ratios": [*raw["compress_ratios"][:depth], *[0] * _STAGES],
        }  # fmt: skip
    return parse_config(raw, f"dimensions {name}")

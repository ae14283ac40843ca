"""DeepSeek-V4 checkpoints with random weights, of any dimensions, in the form DeepSeek publishes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from flagrelease.model.synthetic import AS_PUBLISHED, Stored, write_shards
from flagrelease.model.tensors import TensorSpec
from flagrelease.model.v4.config import parse_config
from flagrelease.model.v4.inventory import inventory


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A `config.json` of the whole architecture at dimensions that mp16 cuts at whole blocks; about 8 MB of weights."""
    config: dict[str, Any] = {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": 512, "hidden_size": 256,
        "num_hidden_layers": 3, "num_hash_layers": 1, "num_nextn_predict_layers": 1, "num_attention_heads": 16,
        "num_key_value_heads": 1, "head_dim": 128, "qk_rope_head_dim": 64, "q_lora_rank": 128, "o_lora_rank": 256,
        "o_groups": 8, "moe_intermediate_size": 128, "n_routed_experts": 16, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0,
        "index_n_heads": 16, "index_head_dim": 128, "index_topk": 16, "hc_mult": 4, "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "sliding_window": 32, "rope_theta": 10000, "compress_rope_theta": 160000,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 65536,
                         "type": "yarn"},
        "compress_ratios": [0, 4, 128, 0], "max_position_embeddings": 1048576, "bos_token_id": 0, "eos_token_id": 1,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "expert_dtype": "fp4",
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    }  # fmt: skip
    return config | changes


def write_checkpoint(
    folder: Path, config: dict[str, Any], stored: Stored = AS_PUBLISHED, seed: int = 0, holes: bool = False
) -> None:
    """Write a checkpoint: files for embed, each layer, head and each MTP stage; index, configs, a text.

    With `holes` the data are holes in sparse files.
    """
    parsed = parse_config(config, folder)
    units: dict[str, list[TensorSpec]] = defaultdict(list)
    for spec in inventory(parsed).values():
        head, _, rest = spec.name.partition(".")
        unit = f"{head}.{rest.partition('.')[0]}" if head in {"layers", "mtp"} else head
        units[unit if unit.startswith(("layers", "mtp", "embed")) else "head"].append(spec)
    order = ["embed", *(u for u in units if u.startswith("layers")), "head", *(u for u in units if u.startswith("mtp"))]
    write_shards(folder, [units[unit] for unit in order], parsed, config, stored, seed, holes)

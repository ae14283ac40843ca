"""transformers' DeepseekV4ForCausalLM with the weights of a test checkpoint, in float32: an independent implementation.

Names as in transformers 5.23's conversion mapping. It quantises no activation and has no MTP stage.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

_ATTENTION = {
    "attn_sink": "sinks", "wq_a.weight": "q_a_proj.weight", "q_norm.weight": "q_a_norm.weight",
    "wq_b.weight": "q_b_proj.weight", "wkv.weight": "kv_proj.weight", "kv_norm.weight": "kv_norm.weight",
    "wo_a.weight": "o_a_proj.weight", "wo_b.weight": "o_b_proj.weight",
    "indexer.wq_b.weight": "compressor.indexer.q_b_proj.weight",
    "indexer.weights_proj.weight": "compressor.indexer.scorer.weights_proj.weight",
} | {
    f"{ours}.{part}": f"{theirs}.{name}"
    for ours, theirs in (("compressor", "compressor"), ("indexer.compressor", "compressor.indexer"))
    for part, name in (
        ("ape", "position_bias"), ("wkv.weight", "kv_proj.weight"), ("wgate.weight", "gate_proj.weight"),
        ("norm.weight", "kv_norm.weight"),
    )
}  # fmt: skip
_FFN = {
    "gate.weight": "gate.weight", "gate.bias": "gate.e_score_correction_bias", "gate.tid2eid": "gate.tid2eid",
    "shared_experts.w1.weight": "shared_experts.gate_proj.weight",
    "shared_experts.w2.weight": "shared_experts.down_proj.weight",
    "shared_experts.w3.weight": "shared_experts.up_proj.weight",
}  # fmt: skip


def state_dict(config: dict[str, Any], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepSeek's names and tensors as transformers'."""
    state = {
        "model.embed_tokens.weight": values["embed.weight"],
        "lm_head.weight": values["head.weight"],
        "model.norm.weight": values["norm.weight"],
    }
    state |= {f"model.hc_head.hc_{part}": values[f"hc_head_{part}"] for part in ("fn", "base", "scale")}
    for n in range(config["num_hidden_layers"]):
        ours, theirs = f"layers.{n}.", f"model.layers.{n}."
        state[f"{theirs}input_layernorm.weight"] = values[f"{ours}attn_norm.weight"]
        state[f"{theirs}post_attention_layernorm.weight"] = values[f"{ours}ffn_norm.weight"]
        for sub in ("attn", "ffn"):
            for part in ("fn", "base", "scale"):
                state[f"{theirs}{sub}_hc.{part}"] = values[f"{ours}hc_{sub}_{part}"]
        state |= {
            f"{theirs}self_attn.{b}": values[f"{ours}attn.{a}"]
            for a, b in _ATTENTION.items()
            if f"{ours}attn.{a}" in values
        }
        state |= {f"{theirs}mlp.{b}": values[f"{ours}ffn.{a}"] for a, b in _FFN.items() if f"{ours}ffn.{a}" in values}
        experts = [f"{ours}ffn.experts.{e}." for e in range(config["n_routed_experts"])]
        state[f"{theirs}mlp.experts.gate_up_proj"] = torch.stack(
            [torch.cat((values[f"{e}w1.weight"], values[f"{e}w3.weight"])) for e in experts]
        )
        state[f"{theirs}mlp.experts.down_proj"] = torch.stack([values[f"{e}w2.weight"] for e in experts])
    return {name: value if value.dtype == torch.int64 else value.float() for name, value in state.items()}


class Oracle:
    """The model and its logits."""

    def __init__(self, config: dict[str, Any], values: dict[str, Tensor]) -> None:
        theirs = DeepseekV4Config(**copy.deepcopy(config))  # it changes the dictionaries it is given
        theirs.dtype = torch.float32
        self.model = DeepseekV4ForCausalLM._from_config(theirs, attn_implementation="eager", dtype=torch.float32)
        missing, unexpected = self.model.load_state_dict(state_dict(config, values), strict=False)
        assert not unexpected, unexpected
        assert not [name for name in missing if "inv_freq" not in name], missing
        self.model.eval()

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """float32 [T, V] of one sequence without a cache."""
        return self.model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0]

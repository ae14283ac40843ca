"""transformers' model with inputs of some linears rounded: an independent computation of a serving stack's numerics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from serving_releases import ROUNDING, ServingRelease, is_coded
from torch import Tensor
from torch.nn.functional import linear
from transformers_oracle import Oracle

# Of transformers' modules in a layer, DeepSeek's name; the experts are one module.
LINEARS = {
    "self_attn.q_a_proj": "attn.wq_a", "self_attn.kv_proj": "attn.wkv", "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.o_b_proj": "attn.wo_b", "self_attn.compressor.indexer.q_b_proj": "attn.indexer.wq_b",
    "mlp.shared_experts.gate_proj": "ffn.shared_experts.w1", "mlp.shared_experts.up_proj": "ffn.shared_experts.w3",
    "mlp.shared_experts.down_proj": "ffn.shared_experts.w2",
}  # fmt: skip


def rounding_oracle(release: ServingRelease, ranks: int = 1, leave_out: str = "") -> Oracle:
    """`ranks`: each of them rounds its own columns of wo_b's input. `leave_out`: one whose input is not rounded."""
    oracle = Oracle(release.config | {"quantization_config": None}, release.values)
    rounded = ROUNDING[release.form]
    for layer in oracle.model.model.layers:
        for theirs, ours in LINEARS.items():
            if ours == leave_out or not is_coded(release.form, f"layers.0.{ours}.weight"):
                continue
            parts = ranks if ours == "attn.wo_b" else 1
            try:
                layer.get_submodule(theirs).register_forward_pre_hook(_hook(rounded, parts))
            except AttributeError:
                assert "indexer" in theirs, "only layers of one kind have an indexer"
        layer.mlp.experts.forward = _experts(layer.mlp.experts, rounded)
    return oracle


def _hook(rounded: Callable[[Tensor], Tensor], parts: int) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, inputs: (torch.cat([rounded(each) for each in inputs[0].chunk(parts, -1)], -1),)


def _experts(module: Any, rounded: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def forward(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        y, out = rounded(x), torch.zeros_like(x)
        for token in range(len(x)):
            for slot in range(ids.shape[1]):
                expert = ids[token, slot]
                gate, up = linear(y[token], module.gate_up_proj[expert]).chunk(2)
                hidden = torch.nn.functional.silu(gate.clamp(max=module.limit)) * up.clamp(-module.limit, module.limit)
                hidden = hidden * weights[token, slot]
                out[token] += linear(rounded(hidden), module.down_proj[expert])
        return out

    return forward

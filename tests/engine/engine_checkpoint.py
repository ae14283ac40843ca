"""Small DeepSeek-V4 checkpoints with random weights, written by rules stated here and not taken from the package.

A weight is made of random codes: E4M3 with a power-of-two scale for each block, or E2M1 with one for each 32. Its value
is decoded with ml_dtypes, so that a `native` and a `bf16` release of the same seed hold the same numbers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Form = Literal["native", "fp8", "bf16"]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
BLOCK = 128


def small_config(**changes: Any) -> dict[str, Any]:
    """A config.json of two sliding, two ratio-4 and one ratio-128 layers, hash-routed first layer, one MTP stage.

    DeepSeek's 20 Sinkhorn iterations converge, so that 19 would show in no logits, and are a quarter of a small step's
    time: here there are 3. The kernels' cases have 20.
    """
    config: dict[str, Any] = {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": 320, "hidden_size": 128,
        "num_hidden_layers": 5, "num_hash_layers": 1, "num_nextn_predict_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 128, "qk_rope_head_dim": 64, "q_lora_rank": 128, "o_lora_rank": 128,
        "o_groups": 2, "moe_intermediate_size": 128, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "norm_topk_prob": True,
        "topk_method": "noaux_tc", "swiglu_limit": 1.5, "index_n_heads": 16, "index_head_dim": 128, "index_topk": 16,
        "hc_mult": 4, "hc_sinkhorn_iters": 3, "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "sliding_window": 32,
        "rope_theta": 10000, "compress_rope_theta": 160000, "max_position_embeddings": 4096,
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 256, "type": "yarn",
        },
        "compress_ratios": [0, 4, 128, 4, 0, 0], "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
        "tie_word_embeddings": False, "attention_bias": False, "attention_dropout": 0.0, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return config | changes


class Checkpoint:
    """A whole model: plain values of every tensor, and the codes and scales of those that DeepSeek stores in codes."""

    def __init__(self, config: dict[str, Any], seed: int = 0, expert_form: Literal["fp4", "fp8"] = "fp4") -> None:
        self.config, self.expert_form = config, expert_form
        self.rng = np.random.default_rng(seed)
        self.values: dict[str, Tensor] = {}
        self.codes: dict[str, tuple[Tensor, Tensor]] = {}
        self._fill()

    def _fill(self) -> None:
        c = self.config
        H, V, M = c["hidden_size"], c["vocab_size"], c["hc_mult"]
        self._bf16("embed.weight", (V, H), 1.0)
        self._bf16("head.weight", (V, H), 3 / math.sqrt(H))
        self._norm("norm.weight", H)
        self._hc("hc_head", M, 1)
        stages = len(c.get("dspark_target_layer_ids", [0] * c["num_nextn_predict_layers"]))
        names = [f"layers.{n}" for n in range(c["num_hidden_layers"])] + [f"mtp.{n}" for n in range(stages)]
        for n, name in enumerate(names):
            self._block(name, c["compress_ratios"][n], hashed=n < c["num_hash_layers"])
        if "dspark_block_size" in c:
            self._dspark(stages)
        elif stages:
            self._fp8("mtp.0.e_proj", H, H)
            self._fp8("mtp.0.h_proj", H, H)
            for norm in ("enorm", "hnorm", "norm"):
                self._norm(f"mtp.0.{norm}.weight", H)
            self._hc("mtp.0.hc_head", M, 1)

    def _dspark(self, stages: int) -> None:
        c, last = self.config, f"mtp.{stages - 1}"
        H, V, rank = c["hidden_size"], c["vocab_size"], c["dspark_markov_rank"]
        self._fp8("mtp.0.main_proj", H, stages * H)
        self._norm("mtp.0.main_norm.weight", H)
        self._norm(f"{last}.norm.weight", H)
        self._hc(f"{last}.hc_head", c["hc_mult"], 1)
        self._bf16(f"{last}.confidence_head.proj.weight", (1, H + rank), 0.01)  # of what no norm has made small
        self._bf16(f"{last}.markov_head.markov_w1.weight", (V, rank), 1.0)
        self._bf16(f"{last}.markov_head.markov_w2.weight", (V, rank), 3 / math.sqrt(rank))

    def _block(self, at: str, ratio: int, hashed: bool) -> None:
        c = self.config
        H, NH, HD, QR, M = (c[k] for k in ("hidden_size", "num_attention_heads", "head_dim", "q_lora_rank", "hc_mult"))
        G, R, MI, E = (c[k] for k in ("o_groups", "o_lora_rank", "moe_intermediate_size", "n_routed_experts"))
        for sub in ("attn", "ffn"):
            self._hc(f"{at}.hc_{sub}", (2 + M) * M, 3)
            self._norm(f"{at}.{sub}_norm.weight", H)
        self._f32(f"{at}.attn.attn_sink", (NH,), 2.0)
        self._fp8(f"{at}.attn.wq_a", QR, H)
        self._norm(f"{at}.attn.q_norm.weight", QR)
        self._fp8(f"{at}.attn.wq_b", NH * HD, QR)
        self._fp8(f"{at}.attn.wkv", HD, H)
        self._norm(f"{at}.attn.kv_norm.weight", HD)
        self._fp8(f"{at}.attn.wo_a", G * R, NH * HD // G)
        self._fp8(f"{at}.attn.wo_b", H, G * R)
        if ratio:
            self._compressor(f"{at}.attn.compressor", ratio, HD)
        if ratio == 4:
            self._fp8(f"{at}.attn.indexer.wq_b", c["index_n_heads"] * c["index_head_dim"], QR)
            self._bf16(f"{at}.attn.indexer.weights_proj.weight", (c["index_n_heads"], H), 1 / math.sqrt(H))
            self._compressor(f"{at}.attn.indexer.compressor", ratio, c["index_head_dim"])
        self._bf16(f"{at}.ffn.gate.weight", (E, H), 1 / math.sqrt(H))
        if hashed:
            picks = [self.rng.permutation(E)[: c["num_experts_per_tok"]] for _ in range(c["vocab_size"])]
            self.values[f"{at}.ffn.gate.tid2eid"] = torch.from_numpy(np.array(picks, dtype=np.int64))
        else:
            self._f32(f"{at}.ffn.gate.bias", (E,), 0.3)
        for name, rows, columns in (("w1", MI, H), ("w2", H, MI), ("w3", MI, H)):
            self._fp8(f"{at}.ffn.shared_experts.{name}", rows, columns, gain=2)
            for e in range(E):
                make = self._fp4 if self.expert_form == "fp4" else self._fp8
                make(f"{at}.ffn.experts.{e}.{name}", rows, columns, gain=2)

    def _compressor(self, at: str, ratio: int, width: int) -> None:
        channels, H = width * (2 if ratio == 4 else 1), self.config["hidden_size"]
        self._f32(f"{at}.ape", (ratio, channels), 1.0)
        self._bf16(f"{at}.wkv.weight", (channels, H), 1 / math.sqrt(H))
        self._bf16(f"{at}.wgate.weight", (channels, H), 1 / math.sqrt(H))
        self._norm(f"{at}.norm.weight", width)

    def _hc(self, at: str, mixes: int, scales: int) -> None:
        width = self.config["hc_mult"] * self.config["hidden_size"]
        self._f32(f"{at}_fn", (mixes, width), 1 / math.sqrt(width))
        self._f32(f"{at}_base", (mixes,), 1.0)
        self.values[f"{at}_scale"] = torch.from_numpy(self.rng.uniform(0.5, 1.5, scales).astype(np.float32))

    def _f32(self, name: str, shape: tuple[int, ...], std: float) -> None:
        self.values[name] = torch.from_numpy(self.rng.normal(0, std, shape).astype(np.float32))

    def _bf16(self, name: str, shape: tuple[int, ...], std: float) -> None:
        self._f32(name, shape, std)
        self.values[name] = self.values[name].bfloat16()

    def _norm(self, name: str, width: int) -> None:
        self.values[name] = torch.from_numpy(self.rng.uniform(0.5, 1.5, width).astype(np.float32)).bfloat16()

    def _fp8(self, at: str, rows: int, columns: int, gain: float = 1) -> None:
        raw = self.rng.normal(0, 8, (rows, columns)).astype(ml_dtypes.float8_e4m3fn)
        blocks = -(-rows // BLOCK), -(-columns // BLOCK)
        base = round(math.log2(gain / math.sqrt(columns) / 8))
        exponent = (base + self.rng.integers(-1, 2, blocks)).astype(np.int32)
        scale = np.repeat(np.repeat(np.exp2(exponent.astype(np.float32)), BLOCK, 0)[:rows], BLOCK, 1)[:, :columns]
        codes = torch.from_numpy(raw.view(np.uint8)).view(torch.float8_e4m3fn)
        self._coded(at, raw.astype(np.float32) * scale, codes, exponent)

    def _fp4(self, at: str, rows: int, columns: int, gain: float = 1) -> None:
        raw = self.rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        base = round(math.log2(gain / math.sqrt(columns) / 3))
        exponent = (base + self.rng.integers(-1, 2, (rows, columns // 32))).astype(np.int32)
        scale = np.repeat(np.exp2(exponent.astype(np.float32)), 32, 1)
        value = np.where(raw & 8, -1, 1) * E2M1[raw & 7] * scale
        packed = (raw[:, 0::2] | (raw[:, 1::2] << 4)).astype(np.uint8)  # the even column in the low nibble
        self._coded(at, value, torch.from_numpy(packed.view(np.int8)), exponent)

    def _coded(self, at: str, value: np.ndarray[Any, Any], codes: Tensor, exponent: np.ndarray[Any, Any]) -> None:
        self.values[f"{at}.weight"] = torch.from_numpy(value.astype(np.float32)).bfloat16()
        assert torch.equal(self.values[f"{at}.weight"].float(), torch.from_numpy(value.astype(np.float32)))
        scale = torch.from_numpy((exponent + 127).astype(np.uint8)).view(torch.float8_e8m0fnu)
        self.codes[f"{at}.weight"] = codes, scale

    def stored(self, form: Form) -> dict[str, Tensor]:
        """The tensors of an hf release, scales included. `native` and `fp8` differ in what the experts were made of."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.values.items():
            if form == "bf16" or name not in self.codes:
                tensors[name] = value
            else:
                tensors[name], tensors[name.removesuffix("weight") + "scale"] = self.codes[name]
        return tensors

    def config_json(self, form: Form) -> dict[str, Any]:
        if form == "bf16":
            return self.config
        quantization = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
            "weight_block_size": [BLOCK, BLOCK],
        }  # fmt: skip
        return self.config | {"quantization_config": quantization, "expert_dtype": self.expert_form}

    def write_hf(self, folder: Path, form: Form, files: int = 2) -> Path:
        """An hf release of several files with an index."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self.stored(form)
        names = sorted(tensors)
        weight_map = {}
        for n in range(files):
            part = names[n::files]
            file = f"model-{n + 1:05}-of-{files:05}.safetensors"
            save_file({name: tensors[name].contiguous() for name in part}, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(self.config_json(form)))
        return folder


def random_tokens(length: int, seed: int = 0, vocabulary: int = 320) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, vocabulary, length).tolist()
    return tokens

"""DSpark's draft stages, written down slowly from the facts (part A.1), on top of `native_transcription`.

One sequence, no ring but a list whose last entries are looked at, no batch. `numerics` says what is rounded: native as
there; bf16: what is stored, and nothing else; float32: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from native_transcription import Array, Transcription, bf16, sigmoid
from torch import Tensor


class DsparkTranscription(Transcription):
    """The stages of a test checkpoint, and the target before them."""

    def __init__(
        self, config: dict[str, Any], values: dict[str, Tensor], numerics: Literal["native", "bf16", "float32"]
    ) -> None:
        super().__init__(config, values, native=numerics == "native")
        self.rounded = numerics != "float32"
        self.targets = config["dspark_target_layer_ids"]
        self.last = f"mtp.{len(self.targets) - 1}"

    def stored(self, x: Array) -> Array:
        return bf16(x) if self.rounded else x

    def head_norm(self, q: Array) -> Array:
        return super().head_norm(q) if self.native else self.norm(q)

    def main_hidden(self, tokens: list[int]) -> list[Array]:
        """Of every token the mean streams behind the target layers, one after the other."""
        streams = [np.tile(self.w["embed.weight"][t], (self.c["hc_mult"], 1)) for t in tokens]
        means: list[list[Array]] = [[] for _ in tokens]
        for n in range(self.c["num_hidden_layers"]):
            streams = self.block(f"layers.{n}", self.c["compress_ratios"][n], streams, tokens)
            for mean, s in zip(means, streams, strict=True):
                if n in self.targets:
                    mean.append(self.stored(s.mean(0)))
        return [np.concatenate(mean) for mean in means]

    def main_x(self, hidden: Array) -> Array:
        return self.norm(self.linear("mtp.0.main_proj", hidden), self.w["mtp.0.main_norm.weight"])

    def key(self, stage: int, x: Array, position: int) -> Array:
        at = f"mtp.{stage}.attn"
        kv = self.norm(self.linear(f"{at}.wkv", x), self.w[f"{at}.kv_norm.weight"])
        return self.cached(self.rope(kv, position, compressed=False))

    def context_keys(self, stage: int, hiddens: list[Array]) -> list[Array]:
        return [self.key(stage, self.main_x(hidden), t) for t, hidden in enumerate(hiddens)]

    def block_attention(self, stage: int, ring: list[Array], xs: list[Array], start: int) -> list[Array]:
        """Of the block's inputs; every one sees the whole ring and the whole block."""
        at, c = f"mtp.{stage}.attn", self.c
        keys = ring + [self.key(stage, x, start + i) for i, x in enumerate(xs)]
        wo_a = self.w[f"{at}.wo_a.weight"].reshape(c["o_groups"], c["o_lora_rank"], -1)
        outs = []
        for i, x in enumerate(xs):
            qr = self.norm(self.linear(f"{at}.wq_a", x), self.w[f"{at}.q_norm.weight"])
            rows = []
            for h, q in enumerate(self.linear(f"{at}.wq_b", qr).reshape(c["num_attention_heads"], c["head_dim"])):
                q = self.rope(self.head_norm(q), start + i, compressed=False)
                z = np.array([q @ k for k in keys]) / math.sqrt(c["head_dim"])
                p = np.exp(z - z.max())
                below = p.sum() + math.exp(self.w[f"{at}.attn_sink"][h] - z.max())
                o = self.stored(sum(self.stored(p)[j] * keys[j] for j in range(len(keys))) / below)
                rows.append(self.rope(o, start + i, compressed=False, sign=-1))
            flat = np.array(rows).reshape(c["o_groups"], -1)
            y = self.stored(np.array([wo_a[g] @ flat[g] for g in range(c["o_groups"])])).flatten()
            outs.append(self.linear(f"{at}.wo_b", y))
        return outs

    def stage(self, stage: int, streams: list[Array], keys: list[Array]) -> list[Array]:
        """A block's streams [4, H] each through one stage. `keys`: of all positions before the block."""
        at, ring, noise = f"mtp.{stage}", keys[-self.c["sliding_window"] :], self.c["dspark_noise_token_id"]
        streams = self.around(at, "attn", streams, lambda xs: self.block_attention(stage, ring, xs, len(keys)))
        return self.around(at, "ffn", streams, lambda xs: [self.moe(f"{at}.ffn", x, noise) for x in xs])

    def read_out(
        self, streams: list[Array], anchor: int, choose: Callable[[Array], int]
    ) -> tuple[list[int], Array, Array]:
        """Tokens, logits [g, V] and confidences [g] of the last stage's streams."""
        prefix, eps = f"{self.last}.", self.c["rms_norm_eps"]
        token, tokens, logits, confidences = anchor, [], [], []
        for s in streams:
            flat = s.flatten()
            mix = self.w[f"{prefix}hc_head_fn"] @ flat / math.sqrt(float(np.mean(flat * flat)) + eps)
            scale, base = self.w[f"{prefix}hc_head_scale"], self.w[f"{prefix}hc_head_base"]
            x = self.stored((sigmoid(mix * scale + base) + self.c["hc_eps"]) @ s)
            e = self.w[f"{prefix}markov_head.markov_w1.weight"][token]
            own = self.w["head.weight"] @ self.norm(x, self.w[f"{prefix}norm.weight"])
            logits.append(own + self.w[f"{prefix}markov_head.markov_w2.weight"] @ e)
            weight = self.w[f"{prefix}confidence_head.proj.weight"][0]
            confidences.append(float(sigmoid(weight @ np.concatenate((x, e)))))
            token = choose(logits[-1])
            tokens.append(token)
        return tokens, np.array(logits), np.array(confidences)

    def block_input(self, anchor: int) -> list[Array]:
        tokens = [anchor] + [self.c["dspark_noise_token_id"]] * (self.c["dspark_block_size"] - 1)
        return [np.tile(self.w["embed.weight"][t], (self.c["hc_mult"], 1)) for t in tokens]

    def draft(
        self, hiddens: list[Array], anchor: int, choose: Callable[[Array], int]
    ) -> tuple[list[int], Array, Array]:
        """From main_hidden of every position up to p, and the token at p + 1."""
        streams = self.block_input(anchor)
        for stage in range(len(self.targets)):
            streams = self.stage(stage, streams, self.context_keys(stage, hiddens))
        return self.read_out(streams, anchor, choose)

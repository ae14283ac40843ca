"""Native numerics, written down slowly: one token, one head, one window at a time, float64 where no format rounds.

Transcribed from the formulas in the facts (sections 3 and 4), with no code of the package: one sequence, no cache, no
batch. What native numerics round is rounded here (BF16 where a tensor is stored, E4M3 and E2M1 with power-of-two scales
where activations are); everything between is float64.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def bf16(x: Array) -> Array:
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def scale_of(largest: float, maximum: float) -> float:
    return float(2.0 ** math.ceil(math.log2(largest / maximum)))


def fp8(x: Array, group: int = 128) -> Array:
    """What is left of a vector after FP8 with a scale for each group."""
    out = np.empty_like(x)
    for start in range(0, len(x), group):
        part = x[start : start + group]
        scale = scale_of(max(float(np.abs(part).max()), 1e-4), 448)
        codes = np.clip(part / scale, -448, 448).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        out[start : start + group] = codes.astype(np.float64) * scale
    return out


def fp4(x: Array, group: int = 32) -> Array:
    """What is left of a vector after FP4 with a scale for each group; ties to the even code."""
    out = np.empty_like(x)
    for start in range(0, len(x), group):
        part = x[start : start + group]
        scale = scale_of(max(float(np.abs(part).max()), 6 * 2.0**-126), 6)
        for i, value in enumerate(part):
            distance = np.abs(E2M1 - min(abs(value) / scale, 6))
            nearest = np.flatnonzero(distance == distance.min())
            code = next(int(n) for n in nearest if len(nearest) == 1 or n % 2 == 0)
            out[start + i] = math.copysign(E2M1[code] * scale, value)
    return out


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def hadamard(x: Array) -> Array:
    """By the definition of Sylvester's matrix: the sign is the parity of the common bits of row and column."""
    n = len(x)
    signs = np.array([[(-1) ** bin(i & j).count("1") for j in range(n)] for i in range(n)])
    return bf16(x @ signs / math.sqrt(n))


class Transcription:
    """A model of a test checkpoint. `native` False: no activation is rounded to FP8 or FP4, nor anything to BF16."""

    def __init__(self, config: dict[str, Any], values: dict[str, Tensor], *, native: bool = True) -> None:
        self.c, self.native = config, native
        self.w: dict[str, Any] = {name: value.double().numpy() for name, value in values.items()}

    def stored(self, x: Array) -> Array:
        return bf16(x) if self.native else x

    def entering(self, x: Array) -> Array:
        return fp8(x) if self.native else x

    def linear(self, name: str, x: Array) -> Array:
        """A linear whose input is rounded to FP8."""
        return self.stored(self.w[f"{name}.weight"] @ self.entering(x))

    def norm(self, x: Array, weight: Any = 1.0) -> Array:
        return self.stored(x / math.sqrt(float(np.mean(x * x)) + self.c["rms_norm_eps"]) * weight)

    def head_norm(self, q: Array) -> Array:
        """The queries' norm, `q *= torch.rsqrt(q.square().mean(-1, keepdim=True) + eps)` on a BF16 tensor in DeepSeek's
        model.py: every step is a BF16 tensor of its own. The mean is added up in FP32 and rounded once.
        """
        mean = self.stored(np.mean(self.stored(q * q)))
        return self.stored(q * self.stored(1 / np.sqrt(self.stored(mean + self.c["rms_norm_eps"]))))

    def rope(self, x: Array, position: int, compressed: bool, sign: int = 1) -> Array:
        """Rotate the last dimensions, pair by pair."""
        dim, yarn = self.c["qk_rope_head_dim"], self.c["rope_scaling"]
        theta = self.c["compress_rope_theta"] if compressed else self.c["rope_theta"]
        out = x.copy()
        for i in range(dim // 2):
            f = theta ** (-2 * i / dim)
            if compressed:
                low, high = (
                    dim
                    * math.log(yarn["original_max_position_embeddings"] / (2 * math.pi * beta))
                    / (2 * math.log(theta))
                    for beta in (yarn["beta_fast"], yarn["beta_slow"])
                )
                first, last = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
                smooth = 1 - min(max((i - first) / (last - first), 0), 1)
                f = f / yarn["factor"] * (1 - smooth) + f * smooth
            at = len(x) - dim + 2 * i
            turned = complex(x[at], x[at + 1]) * complex(math.cos(position * f), sign * math.sin(position * f))
            out[at], out[at + 1] = turned.real, turned.imag
        return self.stored(out)

    def cached(self, kv: Array) -> Array:
        """FP8 in groups of 64 on all but the rotated dimensions."""
        split = len(kv) - self.c["qk_rope_head_dim"]
        return np.concatenate((fp8(kv[:split], 64), kv[split:])) if self.native else kv

    def hyper(self, at: str, streams: Array) -> tuple[Array, Array, Array]:
        """(pre, post, comb) of one token's streams [4, H]."""
        n, eps = self.c["hc_mult"], self.c["hc_eps"]
        flat = streams.flatten()
        mix = self.w[f"{at}_fn"] @ flat / math.sqrt(float(np.mean(flat * flat)) + self.c["rms_norm_eps"])
        scale, base = self.w[f"{at}_scale"], self.w[f"{at}_base"]
        pre = sigmoid(mix[:n] * scale[0] + base[:n]) + eps
        post = 2 * sigmoid(mix[n : 2 * n] * scale[1] + base[n : 2 * n])
        comb = (mix[2 * n :] * scale[2] + base[2 * n :]).reshape(n, n)
        comb = np.exp(comb - comb.max(1, keepdims=True))
        comb = comb / comb.sum(1, keepdims=True) + eps
        comb = comb / (comb.sum(0, keepdims=True) + eps)
        for _ in range(self.c["hc_sinkhorn_iters"] - 1):
            comb = comb / (comb.sum(1, keepdims=True) + eps)
            comb = comb / (comb.sum(0, keepdims=True) + eps)
        return pre, post, comb

    def compress(self, at: str, xs: list[Array], ratio: int, width: int) -> list[Array]:
        """The entries of all complete windows, before any rounding of the cache."""
        kv = [self.w[f"{at}.wkv.weight"] @ x for x in xs]
        gate = [self.w[f"{at}.wgate.weight"] @ x + self.w[f"{at}.ape"][t % ratio] for t, x in enumerate(xs)]
        entries = []
        for w in range(len(xs) // ratio):
            slots = [(kv[t][-width:], gate[t][-width:]) for t in range(w * ratio, (w + 1) * ratio)]
            if ratio == 4 and w:
                slots = [(kv[t][:width], gate[t][:width]) for t in range((w - 1) * ratio, w * ratio)] + slots
            values, gates = np.array([v for v, _ in slots]), np.array([g for _, g in slots])
            weights = np.exp(gates - gates.max(0))
            pooled = self.stored((values * weights / weights.sum(0)).sum(0))
            entries.append(self.rope(self.norm(pooled, self.w[f"{at}.norm.weight"]), w * ratio, compressed=True))
        return entries

    def chosen(self, at: str, xs: list[Array], qrs: list[Array]) -> list[list[int]]:
        """The entries that each query reads in a ratio-4 layer."""
        heads, width = self.c["index_n_heads"], self.c["index_head_dim"]
        round4 = fp4 if self.native else np.asarray
        spread = hadamard if self.native else np.asarray  # without rounding it changes no product
        keys = [round4(spread(k)) for k in self.compress(f"{at}.compressor", xs, 4, width)]
        picks = []
        for t, (x, qr) in enumerate(zip(xs, qrs, strict=True)):
            q = self.linear(f"{at}.wq_b", qr).reshape(heads, width)
            q = np.array([round4(spread(self.rope(row, t, compressed=True))) for row in q])
            weights = self.w[f"{at}.weights_proj.weight"] @ x / math.sqrt(heads * width)
            visible = (t + 1) // 4
            scores = [float(np.maximum(q @ keys[w], 0) @ weights) for w in range(visible)]
            picks.append(sorted(range(visible), key=lambda w: -scores[w])[: self.c["index_topk"]])
        return picks

    def attention(self, at: str, ratio: int, xs: list[Array]) -> list[Array]:
        c, compressed = self.c, ratio > 0
        heads, width, groups = c["num_attention_heads"], c["head_dim"], c["o_groups"]
        qrs = [self.norm(self.linear(f"{at}.wq_a", x), self.w[f"{at}.q_norm.weight"]) for x in xs]
        kvs = [
            self.cached(
                self.rope(self.norm(self.linear(f"{at}.wkv", x), self.w[f"{at}.kv_norm.weight"]), t, compressed)
            )
            for t, x in enumerate(xs)
        ]
        entries = [self.cached(e) for e in self.compress(f"{at}.compressor", xs, ratio, width)] if ratio else []
        picks = self.chosen(f"{at}.indexer", xs, qrs) if ratio == 4 else None
        wo_a = self.w[f"{at}.wo_a.weight"].reshape(groups, c["o_lora_rank"], -1)
        outs = []
        for t, qr in enumerate(qrs):
            keys = kvs[max(0, t - c["sliding_window"] + 1) : t + 1]
            if ratio:
                keys = keys + [entries[w] for w in (picks[t] if picks else range((t + 1) // ratio))]
            rows = []
            for h, q in enumerate(self.linear(f"{at}.wq_b", qr).reshape(heads, width)):
                q = self.rope(self.head_norm(q), t, compressed)
                z = np.array([q @ k for k in keys]) / math.sqrt(width)
                p = np.exp(z - z.max())
                below = p.sum() + math.exp(self.w[f"{at}.attn_sink"][h] - z.max())
                o = self.stored(sum(self.stored(p)[j] * keys[j] for j in range(len(keys))) / below)
                rows.append(self.rope(o, t, compressed, sign=-1))
            flat = np.array(rows).reshape(groups, -1)
            y = self.stored(np.array([wo_a[g] @ flat[g] for g in range(groups)])).flatten()
            outs.append(self.linear(f"{at}.wo_b", y))
        return outs

    def expert(self, at: str, x: Array, weight: float = 1.0) -> Array:
        limit = self.c["swiglu_limit"]
        g, u = self.linear(f"{at}.w1", x), self.linear(f"{at}.w3", x)
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
        return self.linear(f"{at}.w2", self.stored(g * sigmoid(g) * u * weight))

    def moe(self, at: str, x: Array, token: int) -> Array:
        scores = np.sqrt(np.log1p(np.exp(self.w[f"{at}.gate.weight"] @ x)))
        table = self.w.get(f"{at}.gate.tid2eid")
        if table is not None:
            ids = [int(e) for e in table[token]]
        else:
            ids = list(np.argsort(-(scores + self.w[f"{at}.gate.bias"]))[: self.c["num_experts_per_tok"]])
        total = sum(scores[e] for e in ids)
        routed = sum(
            self.expert(f"{at}.experts.{e}", x, scores[e] / total * self.c["routed_scaling_factor"]) for e in ids
        )
        return self.stored(routed + self.expert(f"{at}.shared_experts", x))

    def around(self, at: str, sub: str, streams: list[Array], inner: Any) -> list[Array]:
        mixes = [self.hyper(f"{at}.hc_{sub}", s) for s in streams]
        xs = [self.stored(pre @ s) for (pre, _, _), s in zip(mixes, streams, strict=True)]
        outs = inner([self.norm(x, self.w[f"{at}.{sub}_norm.weight"]) for x in xs])
        return [
            self.stored(np.array([post[k] * o + sum(comb[j, k] * s[j] for j in range(len(s))) for k in range(len(s))]))
            for (_, post, comb), s, o in zip(mixes, streams, outs, strict=True)
        ]

    def block(self, at: str, ratio: int, streams: list[Array], tokens: list[int]) -> list[Array]:
        streams = self.around(at, "attn", streams, lambda xs: self.attention(f"{at}.attn", ratio, xs))
        return self.around(
            at, "ffn", streams, lambda xs: [self.moe(f"{at}.ffn", x, t) for x, t in zip(xs, tokens, strict=True)]
        )

    def head(self, prefix: str, streams: Array) -> Array:
        flat = streams.flatten()
        mix = self.w[f"{prefix}hc_head_fn"] @ flat / math.sqrt(float(np.mean(flat * flat)) + self.c["rms_norm_eps"])
        pre = sigmoid(mix * self.w[f"{prefix}hc_head_scale"] + self.w[f"{prefix}hc_head_base"]) + self.c["hc_eps"]
        x = self.norm(self.stored(pre @ streams), self.w[f"{prefix}norm.weight"])
        return np.asarray(self.w["head.weight"] @ x)

    def streams(self, tokens: list[int]) -> list[Array]:
        streams = [np.tile(self.w["embed.weight"][t], (self.c["hc_mult"], 1)) for t in tokens]
        for n in range(self.c["num_hidden_layers"]):
            streams = self.block(f"layers.{n}", self.c["compress_ratios"][n], streams, tokens)
        return streams

    def logits(self, tokens: list[int]) -> Array:
        return np.array([self.head("", s) for s in self.streams(tokens)])

    def draft_logits(self, tokens: list[int]) -> Array:
        """Row t: from the streams at t and the token that followed."""
        mixed = []
        for streams, following in zip(self.streams(tokens[:-1]), tokens[1:], strict=True):
            e = self.linear("mtp.0.e_proj", self.norm(self.w["embed.weight"][following], self.w["mtp.0.enorm.weight"]))
            rows = [self.linear("mtp.0.h_proj", self.norm(s, self.w["mtp.0.hnorm.weight"])) for s in streams]
            mixed.append(self.stored(np.array(rows) + e))
        return np.array([self.head("mtp.0.", s) for s in self.block("mtp.0", 0, mixed, tokens[1:])])

"""DeepSeek-V4.1's text pass, written down slowly: a token at a time through every layer, float64 where nothing rounds.

Transcribed from the formulas in the facts (deepseek-v4.1-and-dspark.md, part C), before the engine's pass and with no
code of the package: lists instead of caches, one sequence, no batch. Under native numerics what is stored is rounded to
BF16, activations and keys to the formats that part C names; without, everything is float64.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import count
from typing import Any

import ml_dtypes
import numpy as np
from native_transcription import E2M1, Array, bf16, sigmoid
from torch import Tensor

PAD = 2


EVEN_FIRST = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # codes of E2M1: of two that are equally near, the even one is taken


def nearest_e2m1(x: Array) -> Array:
    """The nearest number of E2M1, |x| at most 6."""
    distance = np.abs(E2M1[EVEN_FIRST] - np.minimum(np.abs(x), 6)[..., None])
    return np.copysign(E2M1[EVEN_FIRST[distance.argmin(-1)]], x)


def fp8(x: Array) -> Array:
    """C, first line: groups of 32, a scale 2^ceil(log2(amax / 448)), E4M3."""
    groups = x.reshape(-1, 32)
    scale = np.exp2(np.ceil(np.log2(np.maximum(np.abs(groups).max(1, keepdims=True), 1e-4) / 448)))
    codes = np.clip(groups / scale, -448, 448).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    return (codes.astype(np.float64) * scale).reshape(x.shape)


def fp4(x: Array) -> Array:
    """C.4: groups of 32, a scale 2^ceil(log2(amax / 6)), E2M1."""
    groups = x.reshape(-1, 32)
    scale = np.exp2(np.ceil(np.log2(np.maximum(np.abs(groups).max(1, keepdims=True), 6 * 2.0**-126) / 6)))
    return (nearest_e2m1(groups / scale) * scale).reshape(x.shape)


def fp4_keys(x: Array) -> Array:
    """C.3: groups of 16, s = E4M3(max(amax, 6 * 2^-9) / 6), E2M1 with ties to even, BF16(value * s)."""
    groups = x.reshape(-1, 16).astype(np.float32)
    wanted = np.maximum(np.abs(groups).max(1, keepdims=True), np.float32(6 * 2.0**-9)) / np.float32(6)
    scale = wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return bf16((nearest_e2m1(groups / scale) * scale).reshape(x.shape))


def compressed_key(text: str, raw: str) -> str:
    """C.6: what a token's text is compared by; `raw` is the token as the vocabulary spells it."""
    if "\ufffd" in text:
        return raw
    key = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    key = "".join(c for c in key if unicodedata.category(c)[0] != "M").lower()
    spaced = ""
    for c in key:
        c = " " if c in " \t\r\n" else c
        spaced += "" if c == " " and spaced.endswith(" ") else c
    key = " " if spaced == " " else spaced.strip()
    return key or text


def buckets(layers: Sequence[int], base: int, orders: Sequence[int], heads: int) -> dict[int, list[int]]:
    """C.6: the next unused prime from `base` on, counted again for each order of each layer; order-major."""
    used, found = set[int](), {}
    for layer in layers:
        found[layer] = []
        for _ in orders:
            numbers = count(base)
            for _ in range(heads):
                prime = next(n for n in numbers if n not in used and all(n % d for d in range(2, math.isqrt(n) + 1)))
                used.add(prime)
                found[layer].append(prime)
    return found


class Transcription41:
    """A model of a test checkpoint, fed a token at a time.

    Args:
        config: `text_config` and the top of config.json in one.
        values: every tensor by name, decoded; Engram tables too.
        compressed: compressed id of each token id.
        multipliers: of each Engram layer, for lookbacks 0, 1, ...
        native: whether anything is rounded.
        prompt: with `stale`, tokens that are read before decoding begins.
        stale: score as DeepSeek's code does in decoding (C.5), by the keys that lie in the slot.
    """

    def __init__(
        self, config: dict[str, Any], values: dict[str, Tensor], compressed: Sequence[int],
        multipliers: dict[int, list[int]], *, native: bool, stale: bool = False, prompt: int = 0,
    ) -> None:  # fmt: skip
        self.c, self.native, self.stale, self.prompt = config, native, stale, prompt
        self.w: dict[str, Any] = {name: value.double().numpy() for name, value in values.items()}
        self.compressed, self.multipliers = compressed, multipliers
        orders = range(2, config["engram_max_ngram_size"] + 1)
        self.primes = buckets(config["engram_layer_ids"], config["engram_vocab_size"], orders, config["engram_n_heads"])
        self.turning: dict[int, list[float]] = {}
        self.tokens: list[int] = []
        self.windows: dict[int, list[Array]] = {}  # of every layer
        self.halves: dict[int, list[tuple[Array, Array]]] = {}
        self.entries: dict[int, list[Array]] = {}  # of every kv source
        self.index_keys: dict[int, list[Array]] = {}
        self.picks: dict[tuple[int, int], list[int]] = {}  # of every index source and token
        self.candidates: dict[int, set[int]] = {}

    def stored(self, x: Array) -> Array:
        return bf16(x) if self.native else x

    def linear(self, name: str, x: Array) -> Array:
        return self.stored(self.w[f"{name}.weight"] @ (fp8(x) if self.native else x))

    def plain(self, name: str, x: Array) -> Array:
        return self.stored(self.w[f"{name}.weight"] @ x)

    def norm(self, x: Array, weight: str) -> Array:
        return self.stored(x / math.sqrt(float(np.mean(x * x)) + self.c["rms_norm_eps"]) * self.w[weight])

    def frequencies(self, ratio: int) -> list[float]:
        if ratio in self.turning:
            return self.turning[ratio]
        dim, yarn = self.c["qk_rope_head_dim"], self.c["rope_scaling"]
        theta = self.c["compress_rope_theta"] if ratio else self.c["rope_theta"]
        found = self.turning.setdefault(ratio, [])
        for i in range(dim // 2):
            f = theta ** (-2 * i / dim)
            if ratio:
                low, high = (
                    dim
                    * math.log(yarn["original_max_position_embeddings"] / (2 * math.pi * beta))
                    / (2 * math.log(theta))
                    for beta in (yarn["beta_fast"], yarn["beta_slow"])
                )
                first, last = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
                smooth = 1 - min(max((i - first) / (last - first), 0), 1)
                f = f / yarn["factor"] * (1 - smooth) + f * smooth
            found.append(f)
        return found

    def rope(self, x: Array, position: int, ratio: int, sign: int = 1) -> Array:
        """The last dimensions of [.., d], pair by pair; layers that compress have theta 160000 and YaRN."""
        dim = self.c["qk_rope_head_dim"]
        turns = np.exp(1j * sign * position * np.array(self.frequencies(ratio)))
        still, pairs = x[..., :-dim], x[..., -dim:].reshape(*x.shape[:-1], -1, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turns
        return self.stored(
            np.concatenate((still, np.stack((turned.real, turned.imag), -1).reshape(*x.shape[:-1], dim)), -1)
        )

    # C.1

    def mix(self, at: str, streams: Array) -> tuple[Array, Array, Array]:
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

    def expand(self, o: Array, streams: Array, post: Array, comb: Array) -> Array:
        n = range(len(streams))
        return self.stored(np.array([post[k] * o + sum(comb[j, k] * streams[j] for j in n) for k in n]))

    def layer(self, n: int, t: int, streams: Array, pi: Array) -> tuple[Array, Array]:
        """Streams [4, H] and pi [4] of token t, before and after layer n."""
        at = f"layers.{n}"
        if n in self.c["engram_layer_ids"]:
            streams = self.engram(n, t, streams)
        pre_a, post, comb = self.mix(f"{at}.hc_attn", streams)
        y = self.norm(self.stored(pi @ streams), f"{at}.attn_norm.weight")
        streams = self.expand(self.attention(n, t, y), streams, post, comb)
        pre_f, post, comb = self.mix(f"{at}.hc_ffn", streams)
        y = self.norm(self.stored(pre_a @ streams), f"{at}.ffn_norm.weight")
        return self.expand(self.moe(f"{at}.ffn", t, y), streams, post, comb), pre_f

    # C.2

    def attention(self, n: int, t: int, y: Array) -> Array:
        c, at, ratio = self.c, f"layers.{n}.attn", self.c["compress_ratios"][n]
        groups = c["o_groups"]
        qr = self.norm(self.linear(f"{at}.wq_a", y), f"{at}.q_norm.weight")
        key = self.rope(self.norm(self.linear(f"{at}.wkv", y), f"{at}.kv_norm.weight"), t, ratio)
        window = self.windows.setdefault(n, [])
        window.append(fp8(key) if self.native else key)
        keys = window[-c["sliding_window"] :]
        if ratio:
            source = max(one for one in c["kv_source_layer_ids"] if one <= n)
            if n == source:
                self.compress(n, t, y)
            index = max(one for one in c["index_source_layer_ids"] if one <= n)
            if n == index:
                self.choose(n, source, t, y, qr)
            keys = keys + [self.entries[source][j] for j in self.picks[index, t]]
        heads = []
        for h, q in enumerate(self.rope(self.linear(f"{at}.wq_b", qr).reshape(c["num_attention_heads"], -1), t, ratio)):
            z = np.array(keys) @ q / math.sqrt(c["head_dim"])
            p = np.exp(z - z.max())
            below = p.sum() + math.exp(self.w[f"{at}.attn_sink"][h] - z.max())
            o = self.stored(self.stored(p) @ np.array(keys) / below)
            heads.append(o)
        wo_a = self.w[f"{at}.wo_a.weight"].reshape(groups, c["o_lora_rank"], -1)
        flat = self.rope(np.array(heads), t, ratio, sign=-1).reshape(groups, -1)
        return self.linear(f"{at}.wo_b", self.stored(np.array([wo_a[g] @ flat[g] for g in range(groups)])).flatten())

    # C.3

    def compress(self, n: int, t: int, y: Array) -> None:
        at, ratio = f"layers.{n}.attn", self.c["compress_ratios"][n]
        entries, index_keys = self.entries.setdefault(n, []), self.index_keys.setdefault(n, [])
        if ratio == 1:
            latent = self.plain(f"{at}.compressor.wkv", y)
        else:
            halves = self.halves.setdefault(n, [])
            halves.append((self.w[f"{at}.compressor.wkv.weight"] @ y, self.w[f"{at}.compressor.wgate.weight"] @ y))
            if (t + 1) % 2:
                return
            (a, s), (b, r) = halves[-2:]
            first = sigmoid(s - r)  # the softmax over two tokens
            latent = self.stored(first * a + (1 - first) * b)
        latent = self.norm(latent, f"{at}.compressor.norm.weight")
        j = t // ratio
        k = self.norm(self.plain(f"{at}.indexer.wk", latent), f"{at}.indexer.k_norm.weight")
        k, entry = self.rope(k, j * ratio, ratio), self.rope(latent, j * ratio, ratio)
        index_keys.append(fp4(k) if self.native else k)
        entries.append(fp4_keys(entry) if self.native else entry)

    # C.4

    def choose(self, n: int, source: int, t: int, y: Array, qr: Array) -> None:
        c, at, ratio = self.c, f"layers.{n}.attn.indexer", self.c["compress_ratios"][n]
        keys = self.index_keys.get(source, [])
        if self.stale and t >= self.prompt and (t + 1) % ratio:
            keys = self.index_keys[c["kv_source_layer_ids"][-1]]
        visible = (t + 1) // ratio
        q = self.linear(f"{at}.wq_b", qr).reshape(c["index_n_heads"], -1)
        q = self.rope(q, t, ratio)
        q = fp4(q) if self.native else q
        weights = self.plain(f"{at}.weights_proj", y) / math.sqrt(c["index_head_dim"] * c["index_n_heads"])
        scores = [float(np.maximum(q @ keys[j], 0) @ weights) for j in range(visible)]
        size, allowed = c["candidate_block_size"], set(range(visible))
        if n > c["candidate_source_layer_id"]:
            allowed = {j for j in allowed if j // size in self.candidates[t]}
        ranked = sorted(allowed, key=lambda j: -scores[j])
        self.picks[n, t] = sorted(ranked[: c["index_topk"]])
        if n == c["candidate_source_layer_id"]:
            best = {b: max(scores[b * size : (b + 1) * size]) for b in range(-(-visible // size))}
            best[(visible - 1) // size] = math.inf
            self.candidates[t] = set(sorted(best, key=lambda b: -best[b])[: c["candidate_topk_blocks"]])

    # C.6

    def rows(self, layer: int, t: int) -> list[int]:
        """The rows of the layer's table that token t looks up."""
        c, spelt = self.c, []
        for back in range(c["engram_max_ngram_size"]):
            blocked = t - back < 0 or c["image_token_id"] in self.tokens[t - back : t + 1]
            spelt.append(self.compressed[PAD] if blocked else self.compressed[self.tokens[t - back]])
        heads, multipliers = c["engram_n_heads"], self.multipliers[layer]
        rows, offset, mixed = [], 0, spelt[0] * multipliers[0]
        for s in range(1, c["engram_max_ngram_size"]):
            mixed ^= spelt[s] * multipliers[s]
            for prime in self.primes[layer][(s - 1) * heads : s * heads]:
                rows.append(mixed % prime + offset)
                offset += prime
        return rows

    def engram(self, n: int, t: int, streams: Array) -> Array:
        at, eps, width = f"layers.{n}.engram", self.c["rms_norm_eps"], streams.shape[1]
        if self.tokens[t] == self.c["image_token_id"]:
            return streams
        value = np.concatenate([self.w[f"{at}.embed.weight"][row] for row in self.rows(n, t)])
        *keys, u = self.linear(f"{at}.wkv", value).reshape(-1, width)
        out = []
        for k, (x, key) in enumerate(zip(streams, keys, strict=True)):
            dot = np.sum(x * self.w[f"{at}.q_weight"][k] * self.w[f"{at}.k_weight"][k] * key)
            dot = dot / math.sqrt(float(np.mean(x * x)) + eps) / math.sqrt(float(np.mean(key * key)) + eps)
            dot = dot / math.sqrt(width)
            out.append(x + sigmoid(np.sign(dot) * math.sqrt(max(abs(dot), 1e-6))) * u)
        return self.stored(np.array(out))

    # C.7

    def expert(self, at: str, x: Array, weight: float = 1.0) -> Array:
        limit = self.c["swiglu_limit"]
        g, u = self.linear(f"{at}.w1", x), self.linear(f"{at}.w3", x)
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
        return self.linear(f"{at}.w2", self.stored(g * sigmoid(g) * u * weight))

    def moe(self, at: str, t: int, y: Array) -> Array:
        scores = np.sqrt(np.log1p(np.exp(self.w[f"{at}.gate.weight"] @ y)))
        bias = self.w[f"{at}.gate.{'bias_vl' if self.tokens[t] == self.c['image_token_id'] else 'bias'}"]
        ids = np.argsort(-(scores + bias))[: self.c["num_experts_per_tok"]]
        total = sum(scores[e] for e in ids) + 1e-20
        routed = sum(
            self.expert(f"{at}.experts.{e}", y, scores[e] / total * self.c["routed_scaling_factor"]) for e in ids
        )
        return self.stored(routed + self.expert(f"{at}.shared_experts", y))

    def read(self, token: int) -> Array:
        """Read one more token; the logits after it."""
        t = len(self.tokens)
        self.tokens.append(token)
        streams = np.tile(self.w["embed.weight"][token], (self.c["hc_mult"], 1))
        pi = np.array([1.0] + [0.0] * (self.c["hc_mult"] - 1))
        for n in range(self.c["num_hidden_layers"]):
            streams, pi = self.layer(n, t, streams, pi)
        return self.logits(streams, pi)

    def logits(self, streams: Array, pi: Array) -> Array:
        return np.asarray(self.w["head.weight"] @ self.norm(self.stored(pi @ streams), "norm.weight"))

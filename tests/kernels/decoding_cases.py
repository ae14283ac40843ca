"""Arguments for the fused operators of decoding. A case's operator writes to some of its arguments."""

from __future__ import annotations

import torch
from kernel_cases import BF16, FP32, Case, e4m3, e8m0, experts, fp8_weight, of, quantised, randn, streams, tied_scores
from torch import Tensor

from flagrelease.engine.kernels.reference.quantisation import scaled_fp16

CONTEXT = 64  # positions of the tables
# operator -> the arguments that it writes to
WRITTEN = {"latents": (7,), "compress_token": (8, 9, 10), "compress_windows": (3, 4), "expert_outputs": (8,)}


def tables(r: int) -> tuple[Tensor, Tensor]:
    angle = torch.rand(CONTEXT * 8, r // 2) * 6
    return angle.cos(), angle.sin()


def positions(*at: int) -> Tensor:
    return torch.tensor(at)


def several(width: int, *firsts: int, fewer: int = 0) -> Tensor:
    """Positions of `width` tokens for each row from its first one on; the first row has `fewer` of them."""
    at = torch.tensor(firsts)[None] + torch.arange(width)[:, None]
    at[width - fewer :, 0] = -1
    return at.flatten()


def latents(dtype: torch.dtype, s: int, at: Tensor, quantise: bool, width: int = 1) -> tuple:  # type: ignore[type-arg]
    qr, hd = 256, 128
    parts, kv = randn(s, len(at), qr + hd), randn(len(at) // width, 29, hd, dtype=dtype)
    return parts, randn(qr), randn(hd), 1e-6, *tables(64), at, kv, 5, quantise, quantise


def compress(  # type: ignore[type-arg]
    dtype: torch.dtype, ratio: int, d: int, at: Tensor, rounding: str, width: int = 1
) -> tuple:
    slots, c = (8 + width - 1, 2 * d) if ratio == 4 else (ratio + width - 1, d)
    rows = len(at) // width
    both = randn(2, len(at), 2 * c + 5)  # columns of a wider product, as in the model
    pending = randn(rows, slots + 2, c), randn(rows, slots + 2, c)
    pending[0][:, slots], pending[1][:, slots] = 0, -torch.inf
    entries = randn(rows, CONTEXT + 1, d, dtype=dtype)
    return (
        both[..., 5 : 5 + c], both[..., 5 + c :], randn(ratio, c), randn(d), 1e-6, *tables(min(64, d)), at, *pending,
        entries, rounding,
    )  # fmt: skip


def windows(  # type: ignore[type-arg]
    dtype: torch.dtype, ratio: int, d: int, starts: list[int], count: int, rows: Tensor | None, drafts: int = 0
) -> tuple:
    """Rows that have seen `starts` tokens get `count` more and a padding; all complete as many windows."""
    slots, c = (8, 2 * d) if ratio == 4 else (ratio, d)
    both, size = randn(len(starts), count + 1, 2 * c + 5), slots + drafts
    pending = randn(4, size + 2, c), randn(4, size + 2, c)
    pending[0][:, size], pending[1][:, size] = 0, -torch.inf

    def source(start: int, token: int) -> int:
        """Where a window's token is found: among the new ones, or in its slot; before the first one there is none."""
        return size if token < 0 else size + 2 + token - start if token >= start else token % size

    pooled = [
        [source(start, token) for token in range(ratio * w + ratio - slots, ratio * w + ratio)]
        for start in starts
        for w in range(start // ratio, (start + count) // ratio)
    ]
    kept = [[(start + n) % size if n >= count - size else -1 for n in range(count)] + [-1] for start in starts]
    at = torch.tensor([[start + n for n in range(count)] + [0] for start in starts])
    sources = torch.tensor(pooled, dtype=torch.int64).view(len(starts), -1, slots)
    kv, score = both[..., 5 : 5 + c], both[..., 5 + c :]
    return kv, score, randn(ratio, c), *pending, rows, sources, torch.tensor(kept), at, dtype


def attention(  # type: ignore[type-arg]
    dtype: torch.dtype, h: int, d: int, at: Tensor, ratio: int, chosen: int | None, scaled: bool = False,
    stepwise: bool = False, width: int = 1, ahead: int = 0,
) -> tuple:  # fmt: skip
    first = 40
    q = randn(len(at), h * d + 8, dtype=dtype)[:, : h * d].view(len(at), h, d)
    kv = randn(len(at) // width, 90, d, dtype=dtype)
    listed = None if chosen is None else torch.randint(-1, first, (len(at), chosen), dtype=torch.int32)
    reached = min(first, 20) if ratio else 0
    newest = torch.where(at < 0, -1, at.view(width, -1).amax(0).repeat(width)) if ahead else None
    window = 33 + ahead
    return q, kv, randn(h), listed, at, *tables(16), first, window, ratio, reached, 1e-6, scaled, stepwise, newest


def outputs(t: int, k: int, fmt: str, dtype: torch.dtype, quantise: bool, h: int = 256) -> tuple:  # type: ignore[type-arg]
    x = randn(t, h, dtype=dtype)
    ids = torch.rand(t, 6).argsort(-1)[:, :k].int() - 1  # -1: a row without a token
    held = experts(fmt, 3, 256, h, 2, dtype)
    return x, None, None, ids, torch.rand(t, k), held, 10.0, quantise, randn(t, k + 1, h, dtype=dtype)[:, :k]


def by_dtype(dtype: torch.dtype) -> list[Case]:
    codes = dtype == BF16
    return [
        of("hc_mixes", "4 streams", lambda: streams(3, 4, 256, dtype, 24)[:2]),
        of("hc_mixes", "odd", lambda: streams(17, 3, 35, dtype, 15)[:2]),
        of("hc_mixes", "many tokens", lambda: streams(1030, 2, 70, dtype, 8)[:2]),
        of("hc_pre_norm", "4 streams", lambda: (*mixed(3, 4, 256, dtype), 1e-6, 1e-6, randn(256), codes)),
        of("hc_pre_norm", "odd", lambda: (*mixed(2, 3, 35, dtype), 1e-6, 1e-6, randn(35), False)),
        of("hc_weights", "4 streams", lambda: (*mixed(3, 4, 256, dtype), 20, 1e-6, 1e-6)),
        of("hc_weights", "odd", lambda: (*mixed(2, 3, 35, dtype), 4, 1e-6, 1e-6)),
        of("hc_post_mixes", "parts", lambda: _post_mixes(randn(9, 5, 70), 4, dtype)),
        of("hc_post_mixes", "slots", lambda: _post_mixes(_turned(18, 7, 133, dtype), 3, dtype)),
        of("hc_post_parts", "parts", lambda: (randn(3, 5, 70), randn(5, 4, 70, dtype=dtype), *_post(5))),
        of("hc_post_parts", "slots", lambda: (_turned(5, 7, 70, dtype), randn(5, 4, 70, dtype=dtype), *_post(5))),
        of("linear_parts", "odd", lambda: (randn(5, 1300, dtype=dtype), randn(131, 1300, dtype=dtype))),
        of("latents", "parts", lambda: latents(dtype, 3, positions(0, 61, -1, 24), codes)),
        of("latents", "several", lambda: latents(dtype, 3, several(6, 20, 3, fewer=2), codes, 6)),
        of("latents", "unrounded", lambda: latents(dtype, 1, positions(7), False)),
        of("compress_token", "ratio 4", lambda: compress(dtype, 4, 128, positions(3, 30, 31, -1, 0), "fp8")),
        of("compress_token", "several", lambda: compress(dtype, 4, 64, several(6, 0, 2, 5, 25, fewer=2), "fp8", 6)),
        of("compress_token", "several, 128", lambda: compress(dtype, 128, 64, several(6, 123, 250, 380), "none", 6)),
        of("compress_token", "several, index", lambda: compress(dtype, 4, 32, several(2, 2, 7, 30), "hadamard_fp4", 2)),
        of("compress_token", "ratio 4 plain", lambda: compress(dtype, 4, 32, positions(7, 2), "none")),
        of("compress_token", "ratio 128", lambda: compress(dtype, 128, 64, positions(127, 255, 100), "none")),
        of("compress_token", "index", lambda: compress(dtype, 4, 128, positions(3, 43), "hadamard_fp4")),
        of("compress_token", "index unrounded", lambda: compress(dtype, 4, 64, positions(7), "hadamard")),
        of("compress_windows", "ratio 4", lambda: windows(dtype, 4, 24, [0, 4, 8, 12], 9, None)),
        of("compress_windows", "open windows", lambda: windows(dtype, 4, 50, [5, 1], 6, torch.tensor([3, 1]), 5)),
        of("compress_windows", "a few tokens", lambda: windows(dtype, 4, 16, [6], 2, torch.tensor([2]))),
        of("compress_windows", "no window", lambda: windows(dtype, 4, 16, [4, 8], 3, torch.tensor([2, 0]))),
        of("compress_windows", "ratio 128", lambda: windows(dtype, 128, 70, [100, 227], 130, torch.tensor([0, 3]))),
        of("decode_attention", "window", lambda: attention(dtype, 5, 64, positions(7, 60, -1), 0, None)),
        of("decode_attention", "6 each", lambda: attention(dtype, 5, 64, several(6, 30, 77, fewer=3), 4, 20, width=6)),
        of("decode_attention", "block", lambda: attention(dtype, 5, 64, several(5, 2, 61), 0, None, width=5, ahead=5)),
        of("decode_attention", "prefix", lambda: attention(dtype, 20, 32, positions(2, 79), 4, None)),
        of("decode_attention", "chosen", lambda: attention(dtype, 16, 64, positions(0, 100, 45), 4, 70)),
        of("decode_attention", "many rows", lambda: attention(dtype, 5, 32, torch.arange(-1, 32) * 3, 4, 70)),
        of("decode_attention", "stepwise", lambda: attention(dtype, 5, 64, positions(7, -1), 0, None, False, codes)),
        of("decode_attention", "in groups", lambda: attention(dtype, 3, 256, positions(7, 60, -1), 4, None, codes)),
        of("decode_attention", "many parts", lambda: attention(dtype, 3, 256, positions(60), 4, 1100, codes)),
        of("index_queries", "rounded", lambda: _index(dtype, 20, 128, True)),
        of("index_queries", "unrounded", lambda: _index(dtype, 3, 32, False)),
        of("choose_entries", "one level", lambda: _entries(dtype, 5, 40, 150, [150, 0, 7, 131], 12)),
        of("choose_entries", "several", lambda: _entries(dtype, 5, 40, 150, [150, 0, 7, 131, 9, 90], 12, 3)),
        of("choose_entries", "two levels", lambda: _entries(dtype, 20, 16, 2501, [2501, 2000, 3], 12)),
        of("choose_entries", "three levels", lambda: _entries(dtype, 3, 16, 8501, [8490, 8], 9)),
        of("expert_outputs", "fp4", lambda: outputs(5, 3, "fp4", dtype, True)),
        of("expert_outputs", "fp4 unquantised", lambda: outputs(5, 3, "fp4", dtype, False)),
        of("expert_outputs", "fp4 one", lambda: outputs(1, 3, "fp4", dtype, True)),
        of("expert_outputs", "fp4 few", lambda: outputs(3, 1, "fp4", dtype, True, 512)),
        of("expert_outputs", "fp4 planned", lambda: outputs(17, 2, "fp4", dtype, True, 512)),
        of("expert_outputs", "fp4 many", lambda: outputs(65, 3, "fp4", dtype, True, 512)),
        of("expert_outputs", "fp8", lambda: outputs(5, 3, "fp8", dtype, True)),
        of("expert_outputs", "int8", lambda: outputs(5, 3, "int8", dtype, True)),
        of("expert_outputs", "fp8-channel", lambda: outputs(5, 3, "fp8-channel", dtype, True)),
        of("expert_outputs", "mxfp8", lambda: outputs(5, 3, "mxfp8", dtype, True)),
        of("expert_outputs", "plain", lambda: outputs(5, 3, "plain", dtype, False)),
        of("round_parts", "codes", lambda: (randn(3, 5, 640), dtype, codes)),
        of("swiglu_quant", "codes", lambda: (randn(5, 384, dtype=dtype) * 4, randn(5, 384, dtype=dtype) * 4, 5.0)),
        of("swiglu_parts", "codes", lambda: (randn(2, 5, 768) * 4, 5.0, dtype, codes)),
    ]  # fmt: skip


def mixed(t: int, m: int, h: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Streams, their mixes in parts, scale and base."""
    x, _, scale, base = streams(t, m, h, dtype, m * (m + 2))
    return x, randn(7, t, m * (m + 2)), torch.rand(7, t) * m * h, scale, base


def _post_mixes(parts: Tensor, m: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, fn, _, _ = streams(parts.shape[1], m, parts.shape[2], dtype, m * (m + 2))
    return parts, x, *_post(parts.shape[1], m), fn


def _post(t: int, m: int = 4) -> tuple[Tensor, Tensor]:
    return torch.rand(t, m) * 2, torch.rand(t, m, m)


def _turned(t: int, k: int, h: int, dtype: torch.dtype) -> Tensor:
    return randn(t, k, h, dtype=dtype).transpose(0, 1)


def _index(dtype: torch.dtype, h: int, d: int, quantise: bool) -> tuple:  # type: ignore[type-arg]
    return randn(3, h, d, dtype=dtype), *tables(16), positions(9, -1, 40), quantise


def _entries(dtype: torch.dtype, h: int, d: int, n: int, visible: list[int], k: int, width: int = 1) -> tuple:  # type: ignore[type-arg]
    """Small integers, so that scores are exact in any order and many are equal."""
    t = len(visible)
    q = torch.randint(-1, 2, (t, h, d + 3)).to(dtype)[..., :d]
    keys = torch.randint(-1, 2, (t // width, n + 1, d)).to(dtype)[:, :n]
    weights = torch.randint(-2, 3, (t, 2 * h)).float()[:, h:]
    return q, keys, weights, torch.tensor(visible, dtype=torch.int32), k


def _grouped(b: int, g: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return randn(b, g, k, dtype=BF16), e4m3(g, n, k), e8m0(g, -(-n // 128), -(-k // 128))


def _scaled(x: Tensor, w: Tensor, ws: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """With x in FP16 and scales where 128 divides its columns."""
    x, xs = (x, None) if x.shape[-1] % 128 else scaled_fp16(x * 2.0 ** torch.randint(-20, 20, x.shape))
    return x, xs, w, ws


DECODING_CASES = [
    *[Case(c.operator, f"{c.label} bfloat16", c.make) for c in by_dtype(BF16)],
    *[Case(c.operator, f"{c.label} float32", c.make) for c in by_dtype(FP32)],
    of("fp8_linear_parts", "odd", lambda: (*quantised(5, 1280), *fp8_weight(130, 1280))),
    of("fp8_linear_parts", "many rows", lambda: (*quantised(70, 384), *fp8_weight(7, 384))),
    of("fp8_grouped_linear", "2 groups", lambda: (*_grouped(5, 2, 128, 300), BF16)),
    of("fp8_grouped_linear", "many rows", lambda: (*_grouped(1030, 2, 128, 300), BF16)),
    of("fp8_grouped_linear_parts", "3 groups", lambda: _scaled(*_grouped(3, 3, 256, 1100))),
    of("fp8_grouped_linear_parts", "FP16", lambda: _scaled(*_grouped(3, 3, 256, 1152))),
    of("fp8_grouped_linear_parts", "FP16, many rows", lambda: _scaled(*_grouped(70, 2, 128, 640))),
    of("best_visible", "ties", lambda: (tied_scores(3, 50)[:, :41], torch.tensor([41, 0, 13]), 12)),
    of("best_visible", "all", lambda: (tied_scores(2, 1024), torch.tensor([1024, 700]), 512)),
    of("best_visible", "fewer than k", lambda: (tied_scores(3, 20), torch.tensor([20, 3, 11]), 64)),
    of("best_visible", "many rows", lambda: (tied_scores(17, 1030), torch.randint(0, 1031, (17,)), 8)),
    of("best_visible", "two levels", lambda: (tied_scores(2, 2500), torch.tensor([2500, 2200]), 12)),
    of("best_visible", "four levels", lambda: (tied_scores(3, 34_001), torch.tensor([34_001, 70, 5]), 9)),
    of("best_visible", "best side by side", lambda: (torch.arange(5003.0)[None], torch.tensor([5002]), 70)),
    of("best_visible", "all equal", lambda: (torch.zeros(2, 5000), torch.tensor([5000, 60]), 70)),
    of("best_visible", "a program a row", lambda: (tied_scores(5, 2500), torch.tensor([2500, 600, 90, 1, 0]), 500)),
    of("decode_attention", "long lists", lambda: attention(BF16, 20, 32, positions(7, 60, -1, 79), 4, 1100)),
    of("choose_entries", "four levels", lambda: _entries(BF16, 3, 16, 34_001, [33_990], 9)),
    of("gate_route", "biased", lambda: (randn(3, 5, 40), randn(40), positions(1, 2, -1, 0, 7), 6, 1.5)),
    of("gate_route", "unbiased", lambda: (randn(1, 2, 256), None, positions(1, 2), 6, 1.5)),
    of("gate_route_hashed", "int64", lambda: (randn(2, 3, 9), *_hashed(), positions(5, -1, 0), 1.5)),
]


def _hashed() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 9, (20, 3)), torch.randint(0, 20, (3,))

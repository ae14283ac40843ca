"""Arguments for the operators that only DeepSeek-V4.1 has, at odd shapes."""

from __future__ import annotations

from typing import Any

import torch
from kernel_cases import BF16, FP32, Case, attention, e4m3, e8m0, moe, of, randn, streams, tied_scores
from torch import Tensor

from flagrelease.engine.kernels import reference

E4M3 = torch.float8_e4m3fn
# V4.1-Flash's own for layer 1 with its largest id: the largest products that there are.
MULTIPLIERS = torch.tensor([76632096046245, 4839876093313, 35959672319349, 73987337458391])
LARGEST_ID = 99_091


def grams(t: int, length: int, heads: int) -> tuple[Tensor, ...]:
    ids = torch.randint(0, LARGEST_ID + 1, (2, t, length))
    ids[-1, -1] = LARGEST_ID
    primes = torch.tensor([101, 103, 16_000_057, 16_000_889, 107, 109] * heads)[: (length - 1) * heads]
    offsets = primes.cumsum(0) - primes
    return ids, MULTIPLIERS[:length], primes.view(length - 1, heads), offsets.view(length - 1, heads)


def table(r: int, w: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return (e4m3(r, w), e8m0(r, w // 32)) if dtype == E4M3 else (randn(r, w, dtype=dtype), None)


def tiles(n: int, k: int) -> tuple[Tensor, Tensor]:
    return e4m3(n, k), e8m0(-(-n // 32), -(-k // 32))


def gate(t: int, m: int, h: int, dtype: torch.dtype, images: bool) -> tuple[Any, ...]:
    """The first token's streams are zero, so that its gates stand at one half, where the sign changes."""
    x = randn(t, m, h, dtype=dtype)
    x[0] = 0
    text = torch.arange(t) % 3 != 1 if images else None
    weights = randn(m, h, dtype=dtype), randn(m, h, dtype=dtype)
    return x, randn(t, (m + 1) * h, dtype=dtype), *weights, 1e-20, text


def keys(*shape: int, dtype: torch.dtype) -> Tensor:
    """Groups of 16 of many magnitudes: below the least scale, E4M3's subnormal ones among the scales, and zeros."""
    magnitude = torch.exp2(torch.randint(-12, 9, (*shape[:-1], shape[-1] // 16)).float())
    x = torch.randn(shape) * magnitude.repeat_interleave(16, -1)
    x[..., :16] = 0
    return x.to(dtype)


def delayed(t: int, m: int, h: int) -> tuple[Any, ...]:
    x, fn, scale, base = streams(t, m, h, BF16, m * (m + 2))
    mixes, squares = reference.hc_mixes(x, fn)
    parts = torch.cat((mixes * 0.25, mixes * 0.75)), torch.cat((squares * 0.5, squares * 0.5))
    return x, *parts, scale, base, 20, 1e-6, 1e-20


def shared(
    b: int, s: int, h: int, d: int, dtype: torch.dtype, window_keys: tuple[int, int] = (20, 13),
    entry_keys: tuple[int, int] = (50, 70),
) -> tuple[Any, ...]:  # fmt: skip
    """A query without any key, one with entries alone, and an entry that is listed twice. Keys: stored, listed."""
    q, window, sink, window_idx, scale = attention(b, s, h, d, *window_keys, dtype)
    _, entries, _, entry_idx, _ = attention(b, s, 1, d, *entry_keys, dtype)
    entry_idx[0, -1, 0] = 3
    window_idx[0, -1] = -1
    return q, window, entries, sink, window_idx, entry_idx, scale


def blocks(b: int, s: int, n: int, size: int, k: int, visible: list[int]) -> tuple[Any, ...]:
    return tied_scores(b, s, n), torch.tensor(visible).view(b, s), size, k


def chosen(b: int, s: int, n: int, size: int, k: int, visible: list[int], m: int) -> tuple[Any, ...]:
    scores, seen, _, _ = blocks(b, s, n, size, k, visible)
    return scores, seen, k, reference.v41.candidate_blocks(tied_scores(b, s, n), seen, size, m), size


def _experts(fmt: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Every other 32 columns are much larger and meet zeros: a scale of more than 32 columns would drown the others."""
    x, ids, weights, own, *rest = moe(3, 2, fmt, dtype, True, (2, 64, 128, 1))
    large = torch.arange(128) // 32 % 2 == 0
    for w in (own.w1, own.w3):
        w.view(torch.uint8 if w.element_size() == 1 else dtype)[..., large[::2] if fmt == "fp4" else large] = 0
    return torch.where(large, x * 2**13, x), ids, weights, own, *rest


def _by_dtype(dtype: torch.dtype) -> list[Case]:
    name = str(dtype).removeprefix("torch.")
    cases = [
        of("engram_rows", "plain", lambda: (*table(50, 64, dtype), torch.randint(0, 50, (5, 3)), 0)),
        of("engram_gate", "4 streams", lambda: gate(3, 4, 96, dtype, False)),
        of("engram_gate", "images", lambda: gate(5, 3, 70, dtype, True)),
        of("fp4_keys_roundtrip", "odd", lambda: (keys(3, 7, 80, dtype=dtype),)),
        of("hc_collapse", "odd", lambda: (randn(3, 4, 70, dtype=dtype), randn(3, 4))),
        of("shared_attention", "two lists", lambda: shared(2, 3, 5, 40, dtype)),
        of("fp8_linear_32", "odd", lambda: (randn(2, 3, 200, dtype=dtype), *tiles(70, 200), dtype)),
        of("moe_experts_32", "plain", lambda: _experts("plain", dtype)),
        of("moe_experts_32", "fp4", lambda: _experts("fp4", dtype)),
    ]
    return [Case(c.operator, f"{c.label} {name}", c.make) for c in cases]


V41_CASES = [
    *_by_dtype(BF16),
    *_by_dtype(FP32),
    of("moe_experts_32", "tiles spread over rows", lambda: _experts("mxfp8", BF16)),
    of("ngram_rows", "8 heads", lambda: grams(5, 4, 8)),
    of("ngram_rows", "pairs", lambda: grams(1, 2, 3)),
    of("engram_rows", "codes", lambda: (*table(50, 256, E4M3), torch.randint(0, 50, (3, 7)), 0)),
    of("engram_rows", "codes of a rank", lambda: (*table(33, 96, E4M3), torch.randint(0, 99, (29,)), 41)),
    of("fp8_linear_32", "parts", lambda: (randn(1, 1100, dtype=BF16), *tiles(40, 1100), BF16)),
    of("fp8_linear_32", "decoded once", lambda: (randn(512, 40, dtype=BF16), *tiles(33, 40), BF16)),
    of("hc_delayed", "parts", lambda: delayed(2, 3, 21)),
    of("shared_attention", "window alone", lambda: (lambda a: (*a[:2], None, *a[3:5], None, a[6]))(
        shared(1, 2, 5, 32, BF16))),
    of("candidate_blocks", "ties", lambda: blocks(2, 3, 100, 8, 5, [100, 0, 1, 8, 57, 99])),
    of("candidate_blocks", "all", lambda: blocks(1, 2, 64, 8, 20, [64, 33])),
    of("candidate_blocks", "two programs", lambda: blocks(1, 1, 1100, 8, 30, [1070])),
    of("candidate_blocks", "no entries", lambda: blocks(1, 2, 0, 8, 4, [0, 0])),
    of("topk_candidates", "ties", lambda: chosen(2, 3, 100, 8, 12, [100, 0, 1, 8, 57, 99], 5)),
    of("topk_candidates", "fewer than k", lambda: chosen(1, 2, 40, 4, 64, [40, 33], 3)),
    of("topk_candidates", "no entries", lambda: chosen(1, 2, 0, 8, 4, [0, 0], 3)),
    of("route_modal", "images", lambda: (torch.rand(7, 9), randn(9), randn(9), torch.arange(7) % 3 == 1, 3, 1.5)),
    of("route_modal", "text", lambda: (torch.rand(7, 9), randn(9), randn(9), None, 3, 1.5)),
    of("route_modal", "nothing scores", lambda: (torch.zeros(2, 9), randn(9), randn(9), None, 3, 1.5)),
]  # fmt: skip


def v41_flash_cases() -> list[Case]:
    """V4.1-Flash's shapes, but for tables and experts of a part: a single token, a few, a batch of odd length."""
    cases = []
    for t in (1, 61, 515):
        seen = [20_000 - 7 * i for i in range(t)]
        cases += [
            of("ngram_rows", "24", lambda t=t: grams(t, 4, 8)),
            of("engram_rows", "24", lambda t=t: (*table(200_000, 256, E4M3), torch.randint(0, 200_000, (t, 24)), 0)),
            of("engram_gate", "H", lambda t=t: gate(t, 4, 5120, BF16, True)),
            of("fp4_keys_roundtrip", "512", lambda t=t: (keys(1, t, 512, dtype=BF16),)),
            of("hc_collapse", "H", lambda t=t: (randn(1, t, 4, 5120, dtype=BF16), randn(1, t, 4))),
            of("hc_delayed", "H", lambda t=t: delayed(t, 4, 5120)),
            of("shared_attention", "64 heads", lambda t=t: shared(1, t, 64, 512, BF16, (700, 128), (5000, 512))),
            of("shared_attention", "8 heads", lambda t=t: shared(1, t, 8, 512, BF16, (700, 128), (5000, 512))),
            of("candidate_blocks", "2048", lambda t=t, seen=seen: blocks(1, t, 20_000, 8, 2048, seen)),
            of("topk_candidates", "512", lambda t=t, seen=seen: chosen(1, t, 20_000, 8, 512, seen, 2048)),
            of("route_modal", "384", lambda t=t: (torch.rand(t, 384), *randn(2, 384), torch.rand(t) < 0.5, 6, 1.5)),
            of("fp8_linear_32", "wq_a", lambda t=t: (randn(t, 5120, dtype=BF16), *tiles(1280, 5120), BF16)),
            of("fp8_linear_32", "wq_b", lambda t=t: (randn(t, 1280, dtype=BF16), *tiles(32_768, 1280), BF16)),
            of("fp8_linear_32", "wo_b", lambda t=t: (randn(t, 8192, dtype=BF16), *tiles(5120, 8192), BF16)),
            of("fp8_linear_32", "engram wkv", lambda t=t: (randn(t, 6144, dtype=BF16), *tiles(25_600, 6144), BF16)),
            of("moe_experts_32", "fp4", lambda t=t: moe(t, 6, "fp4", BF16, True, (16, 2304, 5120, 8))),
        ]  # fmt: skip
        cases[-16:] = [Case(c.operator, f"{c.label} {t} tokens", c.make, large=True) for c in cases[-16:]]
    return cases

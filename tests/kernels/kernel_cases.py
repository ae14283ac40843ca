"""Arguments for every operator, at odd shapes: the same cases for the interpreter and the GPU, more for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.layout import ceil_div
from flagrelease.engine.kernels.weights import ExpertWeights

BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Case:
    """One call of an operator. `large` ones take the interpreter too long."""

    operator: str
    label: str
    make: Callable[[], tuple[Any, ...]]
    large: bool = False

    @property
    def tolerance(self) -> str:
        """The operator's row in the table of tolerances; FP32 experts without quantisation round nowhere inside."""
        if "unquantised float32" in self.label:
            return ""
        return "INT32 sums" if self.operator == "row_linear" and self.label.startswith("int8") else self.operator

    def arguments(self, device: torch.device) -> tuple[Any, ...]:
        return tuple(to(argument, device) for argument in self.make())


def to(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, Tensor):
        return argument.to(device)
    if isinstance(argument, ExpertWeights):
        names = ("w1", "w3", "w2", "s1", "s3", "s2")
        return ExpertWeights(*(to(getattr(argument, name), device) for name in names), first=argument.first)
    return argument


def randn(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(*shape).to(dtype)


def e4m3(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.float8_e4m3fn)


def e2m1(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def e8m0(*shape: int) -> Tensor:
    """Scales 2^-9 to 2^-4, about those of a trained weight."""
    return torch.randint(118, 124, shape, dtype=torch.uint8).view(torch.float8_e8m0fnu)


def fp8_weight(n: int, k: int) -> tuple[Tensor, Tensor]:
    return e4m3(n, k), e8m0(ceil_div(n, 128), ceil_div(k, 128))


def fp4_weight(n: int, k: int) -> tuple[Tensor, Tensor]:
    return e2m1(n, k // 2), e8m0(n, k // 32)


def int8(*shape: int) -> Tensor:
    """Codes of a symmetric weight: -127 to 127."""
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def row_weight(n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return int8(n, k) if dtype == torch.int8 else e4m3(n, k), torch.rand(n) / 64 + 1e-3


def mx_weight(*shape: int) -> tuple[Tensor, Tensor]:
    return e4m3(*shape), e8m0(*shape[:-1], shape[-1] // 32).view(torch.uint8)


def tokens(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return reference.token_quant(x, dtype)


def quantised(m: int, k: int) -> tuple[Tensor, Tensor]:
    return reference.act_quant(randn(m, k, dtype=BF16))


def experts(fmt: str, e: int, mi: int, h: int, first: int, dtype: torch.dtype = BF16) -> ExpertWeights:
    if fmt == "plain":
        w1, w3, w2 = (randn(e, *shape, dtype=dtype) / 16 for shape in ((mi, h), (mi, h), (h, mi)))
        return ExpertWeights(w1, w3, w2, None, None, None, first)
    if fmt == "fp4":
        codes = e2m1(e, mi, h // 2), e2m1(e, mi, h // 2), e2m1(e, h, mi // 2)
        return ExpertWeights(*codes, e8m0(e, mi, h // 32), e8m0(e, mi, h // 32), e8m0(e, h, mi // 32), first)
    if fmt == "mxfp8":
        (w1, s1), (w3, s3), (w2, s2) = mx_weight(e, mi, h), mx_weight(e, mi, h), mx_weight(e, h, mi)
        return ExpertWeights(w1, w3, w2, s1, s3, s2, first)
    if fmt in ("int8", "fp8-channel"):
        make = int8 if fmt == "int8" else e4m3
        scale = 1 / 1024 if fmt == "int8" else 1 / 16
        scales = (torch.rand(e, n) * scale + 1e-4 for n in (mi, mi, h))
        return ExpertWeights(make(e, mi, h), make(e, mi, h), make(e, h, mi), *scales, first)
    codes = e4m3(e, mi, h), e4m3(e, mi, h), e4m3(e, h, mi)
    up = e, ceil_div(mi, 128), ceil_div(h, 128)
    return ExpertWeights(*codes, e8m0(*up), e8m0(*up), e8m0(e, up[2], up[1]), first)


def attention(b: int, s: int, h: int, d: int, n: int, t: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Positions with holes, a query without any, one whose first block of 64 has none, and one listed twice."""
    idx = torch.randint(-1, n, (b, s, t), dtype=torch.int32)
    idx[0, 0] = -1
    idx[0, -1, : t // 2 + 1] = -1
    idx[-1, -1, -2:] = n - 1
    return randn(b, s, h, d, dtype=dtype), randn(b, n, d, dtype=dtype), randn(h), idx, d**-0.5


def index(b: int, s: int, h: int, d: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return randn(b, s, h, d, dtype=dtype), randn(b, n, d, dtype=dtype), randn(b, s, h)


def streams(t: int, m: int, h: int, dtype: torch.dtype, mixes: int) -> tuple[Any, ...]:
    fn = randn(mixes, m * h) * (m * h) ** -0.5
    return randn(t, m, h, dtype=dtype), fn, torch.rand(1 if mixes == m else 3) + 0.5, randn(mixes)


def moe(
    t: int, k: int, fmt: str, dtype: torch.dtype, quantise: bool, shape: tuple[int, int, int, int]
) -> tuple[Any, ...]:
    """Experts first .. first + e of twice as many, so that half of the pairs belong to other ranks."""
    e, mi, h, first = shape
    ids = torch.rand(t, 2 * e).argsort(-1)[:, :k]
    return randn(t, h, dtype=dtype), ids, torch.rand(t, k), experts(fmt, e, mi, h, first, dtype), 10.0, quantise


def tied_scores(*shape: int) -> Tensor:
    """Many exact ties, at zero and elsewhere, and negative scores."""
    return torch.randn(*shape).mul(2).round().div(2)


def of(operator: str, label: str, make: Callable[[], tuple[Any, ...]], large: bool = False) -> Case:
    return Case(operator, label, make, large)


def by_dtype(dtype: torch.dtype) -> list[Case]:
    name = str(dtype).removeprefix("torch.")
    wide = randn(3, 5, 7, 96, dtype=dtype)
    cases = [
        of("rms_norm", "weighted", lambda: (randn(5, 7, 100, dtype=dtype), randn(100), 1e-6)),
        of("rms_norm", "heads", lambda: (randn(3, 5, 64, dtype=dtype), None, 1e-6)),
        of("rms_norm", "heads step by step", lambda: (randn(3, 5, 96, dtype=dtype), None, 1e-6, None, True)),
        of("apply_rope", "heads", lambda: (wide[..., 32:], randn(5, 1, 32), randn(5, 1, 32))),
        of("apply_rope", "inverse", lambda: (wide[..., 90:], randn(3, 5, 1, 3), randn(3, 5, 1, 3), True)),
        of("apply_rope", "kv", lambda: (wide[:, :, 0, 32:], randn(5, 32), randn(5, 32))),
        of("act_quant", "128", lambda: (spread(5, 384, dtype=dtype),)),
        of("act_quant", "64", lambda: (spread(3, 5, 192, dtype=dtype), 64)),
        of("act_quant_roundtrip", "64", lambda: (spread(3, 5, 256, dtype=dtype)[..., :192], 64)),
        of("fp4_act_quant", "32", lambda: (spread(5, 96, dtype=dtype),)),
        of("fp4_act_quant_roundtrip", "32", lambda: (spread(3, 5, 128, dtype=dtype),)),
        of("hadamard", "128", lambda: (randn(3, 7, 128, dtype=dtype),)),
        of("hadamard", "16", lambda: (randn(5, 16, dtype=dtype),)),
        of("swiglu", "weighted", lambda: (*_gate_up(5, 100, dtype=dtype), 10.0, randn(5))),
        of("swiglu", "shared", lambda: (*_gate_up(3, 5, 70, dtype=dtype), 10.0)),
        of("add", "broadcast", lambda: (randn(5, 1, 7, dtype=dtype), randn(5, 4, 7), dtype)),
        of("embedding", "shard", lambda: (torch.randint(0, 40, (3, 5)), randn(11, 70, dtype=dtype), 13)),
        of("linear", "odd", lambda: (randn(2, 3, 200, dtype=dtype), randn(131, 200, dtype=dtype), dtype)),
        of("linear", "many", lambda: (randn(67, 40, dtype=dtype), randn(9, 40, dtype=dtype), FP32)),
        of("grouped_linear", "odd", lambda: (randn(2, 3, 2, 72, dtype=dtype), randn(2, 70, 72, dtype=dtype), dtype)),
        of("gate_scores", "odd", lambda: (randn(5, 96, dtype=dtype), randn(9, 96, dtype=dtype))),
        of("sparse_attention", "5 heads", lambda: attention(2, 3, 5, 40, 50, 150, dtype)),
        of("sparse_attention", "1 head", lambda: attention(1, 2, 1, 16, 9, 7, dtype)),
        of("sparse_attention", "24 heads", lambda: attention(1, 3, 24, 64, 90, 70, dtype)),
        of("sparse_attention", "rows", lambda: (*attention(4, 3, 5, 40, 50, 150, dtype), torch.tensor([3, 0, 2, 0]))),
        of("indexer_scores", "odd", lambda: index(2, 3, 5, 40, 150, dtype)),
        of("indexer_scores", "rows", lambda: (*index(4, 3, 5, 40, 150, dtype), torch.tensor([3, 0, 2, 0]))),
        of("hc_pre", "4 streams", lambda: (*streams(3, 4, 48, dtype, 24), 20, 1e-6, 1e-6)),
        of("hc_pre", "3 streams", lambda: (*streams(17, 3, 21, dtype, 15), 4, 1e-6, 1e-6)),
        of("hc_head", "4 streams", lambda: (*streams(3, 4, 48, dtype, 4), 1e-6, 1e-6)),
        of("hc_post", "odd", lambda: (randn(2, 3, 35, dtype=dtype), randn(2, 3, 4, 35, dtype=dtype), *_post(2, 3))),
        of("fp8_linear", "unquantised", lambda: (randn(5, 200, dtype=dtype), None, *fp8_weight(130, 200), dtype)),
        of("fp4_linear", "unquantised", lambda: (randn(5, 96, dtype=dtype), None, *fp4_weight(70, 96), dtype)),
    ]  # fmt: skip
    for fmt in ("fp4", "fp8", "plain"):
        for quantise in (True, False):
            label = f"{fmt} {'quantised' if quantise else 'unquantised'}"
            make = lambda fmt=fmt, q=quantise: moe(7, 3, fmt, dtype, q, (3, 128, 256, 2))  # noqa: E731
            cases.append(of("moe_experts", label, make))
    for codes in (torch.int8, torch.float8_e4m3fn):
        kind = str(codes).removeprefix("torch.")
        row = lambda m, k, n, codes=codes: (*tokens(randn(*m, k), codes), *row_weight(n, k, codes), dtype)  # noqa: E731
        cases += [
            of("token_quant", f"{kind} odd", lambda codes=codes: (spread(3, 5, 224, dtype=dtype)[..., :187], codes)),
            of("token_quant", f"{kind} long", lambda codes=codes: (spread(3, 8320, dtype=dtype)[:, :8300], codes)),
            of("row_linear", f"{kind} odd", lambda row=row: row((2, 3), 200, 131)),
            of("row_linear", f"{kind} many", lambda row=row: row((67,), 40, 9)),
        ]
    cases += [
        of("mx_act_quant_roundtrip", "odd", lambda: (spread(3, 5, 192, dtype=dtype)[..., :160],)),
        of("mx_linear", "odd", lambda: (randn(2, 3, 224, dtype=dtype), *mx_weight(131, 224), dtype)),
        of("mx_linear", "many", lambda: (randn(67, 64, dtype=dtype), *mx_weight(9, 64), FP32)),
    ]
    for fmt in ("int8", "fp8-channel", "mxfp8"):
        make = lambda fmt=fmt: moe(7, 3, fmt, dtype, True, (3, 96, 160, 2))  # noqa: E731
        cases.append(of("moe_experts", f"{fmt} quantised", make))
    cases.append(of("moe_experts", "mxfp8 unquantised", lambda: moe(5, 2, "mxfp8", dtype, False, (2, 64, 96, 1))))
    return [Case(c.operator, f"{c.label} {name}", c.make) for c in cases]


def _gate_up(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Beyond the limit of 10 on both sides now and then."""
    return randn(*shape, dtype=dtype) * 9, randn(*shape, dtype=dtype) * 9


def spread(*shape: int, dtype: torch.dtype) -> Tensor:
    """Every 32 columns of another magnitude, 2^-12 to 2^11: else a scale of the wrong group would hardly show."""
    magnitude = torch.exp2(torch.randint(-12, 12, (*shape[:-1], shape[-1] // 32)).float())
    return (torch.randn(shape) * magnitude.repeat_interleave(32, -1)).to(dtype)


def _grouped(t: int, g: int, k: int, n: int) -> tuple[Any, ...]:
    return randn(t, g, k, dtype=BF16), randn(g, n, k, dtype=BF16), BF16


def _post(*lead: int) -> tuple[Tensor, Tensor]:
    return torch.rand(*lead, 4) * 2, torch.rand(*lead, 4, 4)


CASES = [
    *by_dtype(BF16),
    *by_dtype(FP32),
    of("fp8_linear", "FP32 scales", lambda: (*quantised(5, 256), e4m3(130, 256), torch.rand(2, 2))),
    of("fp8_linear", "many rows", lambda: (*quantised(70, 128), *fp8_weight(7, 128), FP32)),
    of("fp4_linear", "quantised", lambda: (*quantised(5, 256), *fp4_weight(70, 256))),
    of("fp4_linear", "many rows", lambda: (*quantised(70, 128), *fp4_weight(7, 128), FP32)),
    of("race", "one part", lambda: runners(FP32, 5, 70, [1.0, 0.0, 0.3, 2.0, 1e-30])),
    of("race", "parts", lambda: runners(BF16, 9, 4500, [0.5, 1.0, 0.0] * 3)),
    of("race", "cut off", lambda: runners(FP32, 8, 2100, [1.0, 5.0, 0.0, 7.0] * 2, min_p=-0.2)),
    of("race", "not allowed", lambda: _not_allowed(3, 5000, [1.0, 3e38, 0.0])),
    of("race", "ties", lambda: (torch.ones(2, 5000), torch.zeros(2), _keys(2), torch.full((2,), -torch.inf))),
    of("race", "broken", lambda: (torch.full((2, 4100), torch.nan), torch.ones(2), _keys(2), torch.zeros(2))),
    of("hc_split_sinkhorn", "4 streams", lambda: (randn(5, 24), torch.rand(3), randn(24), 4, 20, 1e-6)),
    of("hc_split_sinkhorn", "3 streams", lambda: (randn(2, 3, 15), torch.rand(3), randn(15), 3, 1, 1e-6)),
    of("route", "biased", lambda: (torch.rand(7, 9), randn(9), 3, 1.5)),
    of("route", "ties", lambda: (torch.ones(3, 20), None, 6, 2.5)),
    of("route_hashed", "int64", lambda: (torch.rand(7, 9), *_hash_table(torch.int64), 1.5)),
    of("route_hashed", "int32", lambda: (torch.rand(7, 9), *_hash_table(torch.int32), 1.5)),
    of("topk_visible", "ties", lambda: (tied_scores(3, 4, 50), torch.randint(0, 51, (3, 4)), 12, 100)),
    of("topk_visible", "all", lambda: (tied_scores(3, 4, 50), torch.full((3, 4), 50), 50)),
    of("topk_visible", "fewer than k", lambda: (tied_scores(3, 4, 20), torch.randint(0, 21, (3, 4)), 64)),
    of("topk_visible", "two blocks", lambda: (tied_scores(1, 2, 8500), torch.tensor([[8500, 8200]]), 1500)),
    of("topk_visible", "three levels", lambda: (tied_scores(2, 70_000), torch.tensor([70_000, 66_001]), 20)),
    of("topk_visible", "best side by side", lambda: (torch.arange(9000.0)[None], torch.tensor([8999]), 70)),
    of("topk_visible", "all equal", lambda: (torch.zeros(2, 9000), torch.tensor([9000, 60]), 70)),
    of("topk_visible", "no entries", lambda: (tied_scores(2, 3, 0), torch.zeros(2, 3, dtype=torch.int64), 8)),
]  # fmt: skip


def runners(dtype: torch.dtype, n: int, v: int, temperature: list[float], min_p: float = -torch.inf) -> Any:
    return randn(n, v, dtype=dtype) * 3, torch.tensor(temperature), _keys(n), torch.full((n,), min_p)


def _keys(n: int) -> Tensor:
    """As they lie in what is sent to the device: columns of a wider block, turned."""
    return torch.randint(-(2**31), 2**31, (2, n), dtype=torch.int32).T


def _not_allowed(n: int, v: int, temperature: list[float]) -> Any:
    logits, *rest = runners(FP32, n, v, temperature)
    return logits.masked_fill(torch.rand(n, v) < 0.999, -torch.inf), *rest


def _hash_table(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 9, (20, 3), dtype=dtype), torch.randint(0, 20, (7,))


def flash_cases() -> list[Case]:
    """V4-Flash's shapes (and V4-Pro's where they differ in kind), a single token and a batch of odd length."""
    cases = []
    for t in (1, 61, 515):
        cases += [
            of("rms_norm", "H", lambda t=t: (randn(t, 4096, dtype=BF16), randn(4096), 1e-6)),
            of("rms_norm", "Pro H", lambda t=t: (randn(t, 7168, dtype=BF16), randn(7168), 1e-6)),
            of("rms_norm", "heads", lambda t=t: (randn(1, t, 64, 512, dtype=BF16), None, 1e-6)),
            of("rms_norm", "heads in steps", lambda t=t: (randn(1, t, 64, 512, dtype=BF16), None, 1e-6, None, True)),
            of("apply_rope", "q", lambda t=t: (randn(1, t, 64, 512, dtype=BF16)[..., 448:], *_angles(t))),
            of("act_quant", "H", lambda t=t: (randn(t, 4096, dtype=BF16),)),
            of("act_quant_roundtrip", "kv", lambda t=t: (randn(1, t, 512, dtype=BF16)[..., :448], 64)),
            of("fp4_act_quant_roundtrip", "index q", lambda t=t: (randn(1, t, 64, 128, dtype=BF16),)),
            of("hadamard", "index q", lambda t=t: (randn(1, t, 64, 128, dtype=BF16),)),
            of("linear", "head", lambda t=t: (randn(t, 4096), randn(2000, 4096), FP32)),
            of("linear", "compressor", lambda t=t: (randn(t, 4096, dtype=BF16), randn(1024, 4096, dtype=BF16), FP32)),
            of("grouped_linear", "wo_a", lambda t=t: _grouped(t, 8, 4096, 1024)),
            of("fp8_linear", "wq_b", lambda t=t: (*quantised(t, 1024), *fp8_weight(4096, 1024))),
            of("fp8_linear", "wo_b", lambda t=t: (*quantised(t, 8192), *fp8_weight(4096, 8192))),
            of("fp4_linear", "w1", lambda t=t: (*quantised(t, 4096), *fp4_weight(2048, 4096))),
            of("gate_scores", "256", lambda t=t: (randn(t, 4096, dtype=BF16), randn(256, 4096, dtype=BF16) / 64)),
            of("route", "256", lambda t=t: (torch.rand(t, 256), randn(256) / 9, 6, 1.5)),
            of("sparse_attention", "64 heads", lambda t=t: attention(1, t, 64, 512, 700, 640, BF16)),
            of("sparse_attention", "8 heads", lambda t=t: attention(1, t, 8, 512, 700, 640, BF16)),
            of("sparse_attention", "128 heads", lambda t=t: attention(1, t, 128, 512, 300, 128, BF16)),
            of("sparse_attention", "float32", lambda t=t: attention(1, t, 64, 512, 300, 128, FP32)),
            of("indexer_scores", "64", lambda t=t: index(1, t, 64, 128, 777, BF16)),
            of("topk_visible", "512", lambda t=t: (tied_scores(1, t, 9000), torch.randint(0, 9001, (1, t)), 512, 128)),
            of("race", "vocabulary", lambda t=t: runners(FP32, t, 129_280, [1.0] * t)),
            of("hc_pre", "4", lambda t=t: (*streams(t, 4, 4096, BF16, 24), 20, 1e-6, 1e-6)),
            of("hc_head", "4", lambda t=t: (*streams(t, 4, 4096, BF16, 4), 1e-6, 1e-6)),
            of("hc_post", "4", lambda t=t: (randn(t, 4096, dtype=BF16), randn(t, 4, 4096, dtype=BF16), *_post(t))),
            of("moe_experts", "fp4", lambda t=t: moe(t, 6, "fp4", BF16, True, (16, 2048, 4096, 8))),
            of("moe_experts", "fp8", lambda t=t: moe(t, 6, "fp8", BF16, True, (8, 2048, 4096, 4))),
            of("moe_experts", "plain", lambda t=t: moe(t, 6, "plain", BF16, False, (8, 2048, 4096, 4))),
        ]  # fmt: skip
        cases[-30:] = [Case(c.operator, f"{c.label} {t} tokens", c.make, large=True) for c in cases[-30:]]
    return cases


def _angles(t: int) -> tuple[Tensor, Tensor]:
    angle = torch.randn(t, 1, 32)
    return angle.cos(), angle.sin()

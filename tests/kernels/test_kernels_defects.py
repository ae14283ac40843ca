"""The comparison that accepts every kernel rejects results with a typical mistake in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import CASES
from kernel_comparison import assert_same
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.triton_operators import TritonOperators
from flagrelease.engine.kernels.weights import ExpertWeights

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def swapped_nibbles(w: Tensor) -> Tensor:
    return (w << 4) | (w >> 4)


def numeric_scale(ws: Tensor) -> Tensor:
    """E8M0 values copied into integers instead of viewed as bits."""
    return ws.float().to(torch.uint8).float()


def truncated(x: Tensor) -> Tensor:
    """FP32 to BF16 by dropping bits."""
    return (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()


def half_split_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)


def without_shared_clamp(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


def gate_clamped_below(gate: Tensor, up: Tensor, limit: float, weight: Tensor) -> Tensor:
    return reference.swiglu(gate.clamp(min=-1.0), up, limit, weight)


def weights_from_biased(scores: Tensor, bias: Tensor, topk: int, route_scale: float) -> tuple[Tensor, Tensor]:
    ids, _ = reference.route(scores, bias, topk, route_scale)
    weights = (scores + bias).gather(-1, ids.long())
    return ids, weights / weights.sum(-1, keepdim=True) * route_scale


def ends_on_rows(mixes: Tensor, scale: Tensor, base: Tensor, n: int, iters: int, eps: float) -> tuple[Tensor, ...]:
    pre, post, comb = reference.hc_split_sinkhorn(mixes, scale, base, n, iters, eps)
    return pre, post, comb / (comb.sum(-1, keepdim=True) + eps)


def experts_with(experts: ExpertWeights, **changes: Tensor | int | None) -> ExpertWeights:
    return replace(experts, **changes)  # type: ignore[arg-type]


def moe_with(change: Callable[[ExpertWeights], ExpertWeights]) -> Callable[..., Tensor]:
    return lambda x, ids, weights, experts, limit, quantise: reference.moe_experts(
        x, ids, weights, change(experts), limit, quantise
    )


# (operator, case, the definition with the mistake)
DEFECTS: list[tuple[str, str, str, Callable[..., Any]]] = [
    ("sink scaled", "sparse_attention", "5 heads bfloat16",
     lambda q, kv, sink, idx, scale: reference.sparse_attention(q, kv, sink * scale, idx, scale)),
    ("sink left out", "sparse_attention", "24 heads bfloat16",
     lambda q, kv, sink, idx, scale: reference.sparse_attention(q, kv, sink - 1e4, idx, scale)),
    ("-1 taken for the last position", "sparse_attention", "5 heads bfloat16",
     lambda q, kv, sink, idx, scale: reference.sparse_attention(q, kv, sink, idx % kv.shape[1], scale)),
    ("no inverse", "apply_rope", "inverse bfloat16", lambda x, cos, sin, inverse: reference.apply_rope(x, cos, sin)),
    ("halves instead of neighbours", "apply_rope", "heads bfloat16", half_split_rope),
    ("comb transposed", "hc_post", "odd bfloat16",
     lambda o, x, post, comb: reference.hc_post(o, x, post, comb.mT)),
    ("factor 2 of post", "hc_pre", "4 streams bfloat16",
     lambda *a: (lambda y, post, comb: (y, post / 2, comb))(*reference.hc_pre(*a))),
    ("sinkhorn ends on rows", "hc_split_sinkhorn", "3 streams", ends_on_rows),
    ("one iteration more", "hc_split_sinkhorn", "3 streams",
     lambda mixes, scale, base, n, iters, eps: reference.hc_split_sinkhorn(mixes, scale, base, n, iters + 1, eps)),
    ("nibbles swapped", "fp4_linear", "quantised",
     lambda xq, xs, w, ws: reference.fp4_linear(xq, xs, swapped_nibbles(w), ws)),
    ("scales copied as numbers", "fp4_linear", "quantised",
     lambda xq, xs, w, ws: reference.fp4_linear(xq, xs, w, numeric_scale(ws))),
    ("scales of another block", "fp8_linear", "FP32 scales",
     lambda xq, xs, w, ws: reference.fp8_linear(xq, xs, w, ws.mT)),
    ("activation scales of another block", "fp8_linear", "FP32 scales",
     lambda xq, xs, w, ws: reference.fp8_linear(xq, xs.flip(-1) * 2, w, ws)),
    ("no clamp", "swiglu", "shared bfloat16", without_shared_clamp),
    ("gate clamped below", "swiglu", "weighted bfloat16", gate_clamped_below),
    ("bias weighs", "route", "biased", weights_from_biased),
    ("no route scale", "route", "biased", lambda s, b, k, scale: reference.route(s, b, k, 1.0)),
    ("later of equal scores", "topk_visible", "ties",
     lambda s, v, k, offset: reference.topk_visible(s + torch.arange(50) * 1e-4, v, k, offset)),
    ("one too many visible", "topk_visible", "ties",
     lambda s, v, k, offset: reference.topk_visible(s + (torch.arange(50) == v[..., None]) * 9, v + 1, k, offset)),
    ("not normalised", "hadamard", "128 bfloat16", lambda x: reference.hadamard(x) * 128**0.5),
    ("rounding truncates", "rms_norm", "weighted bfloat16",
     lambda x, w, eps: truncated(reference.rms_norm(x.float(), w, eps))),
    ("FP32 until the end", "rms_norm", "heads step by step bfloat16",
     lambda x, w, eps, out, stepwise: reference.rms_norm(x, w, eps, out)),
    ("no quantisation", "act_quant_roundtrip", "64 bfloat16", lambda x, block: x),
    ("groups of 128", "act_quant_roundtrip", "64 bfloat16",
     lambda x, block: reference.act_quant_roundtrip(torch.nn.functional.pad(x, (0, 64)), 128)[..., :192]),
    ("relu after the sum", "indexer_scores", "odd bfloat16",
     lambda q, k, w: torch.einsum("bshd,bnd,bsh->bsn", q.float(), k.float(), w).relu()),
    ("rows of other ranks not masked", "embedding", "shard bfloat16",
     lambda ids, table, start: table[(ids - start).clamp(0, len(table) - 1)]),
    ("temperature forgotten", "race", "parts", lambda x, t, keys, m: reference.race(x, t.sign(), keys, m)),
    ("nothing cut off", "race", "cut off", lambda x, t, keys, m: reference.race(x, t, keys, m - torch.inf)),
    ("keys of another row", "race", "one part", lambda x, t, keys, m: reference.race(x, t, keys.roll(1, 0), m)),
    ("softplus without root", "gate_scores", "odd float32",
     lambda x, w: torch.nn.functional.softplus(x @ w.mT)),
    ("gate and up swapped", "moe_experts", "fp4 quantised bfloat16",
     moe_with(lambda e: experts_with(e, w1=e.w3, w3=e.w1, s1=e.s3, s3=e.s1))),
    ("next rank's experts", "moe_experts", "plain unquantised bfloat16",
     moe_with(lambda e: experts_with(e, first=e.first + 1))),
    ("hidden layer not quantised", "moe_experts", "plain quantised bfloat16",
     lambda x, ids, weights, e, limit, quantise: reference.moe_experts(
         reference.act_quant_roundtrip(x), ids, weights, e, limit, False)),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "label", "defective"), [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_planted_defect_is_caught(
    operator: str, label: str, defective: Callable[..., Any], device: torch.device
) -> None:
    case = next(c for c in CASES if (c.operator, c.label) == (operator, label))
    arguments = case.arguments(device)
    kernel = getattr(TritonOperators, operator)(*arguments)
    assert_same(kernel, getattr(reference, operator)(*arguments), case.tolerance)
    with torch.device(device):
        wrong = defective(*arguments)
    with pytest.raises(AssertionError):
        assert_same(kernel, wrong, case.tolerance)


def test_an_element_that_is_not_written_is_caught() -> None:
    expected = torch.randn(1000, 1000).bfloat16()
    actual = expected.clone()
    actual[500, 500] = torch.nan
    with pytest.raises(AssertionError):
        assert_same(actual, expected)
    actual[500, 500] = expected[500, 500] + 0.5
    with pytest.raises(AssertionError, match="one element"):
        assert_same(actual, expected)

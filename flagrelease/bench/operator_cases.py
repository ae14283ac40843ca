"""Operators at a model's shapes, to be timed: arguments on the device, and the bytes that a call must read.

Legend: T tokens, E experts that are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flagrelease.engine.kernels.layout import ceil_div
from flagrelease.engine.kernels.weights import ExpertWeights
from flagrelease.model.v4.config import ModelConfig

BF16, FP32, E4M3, E8M0 = torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e8m0fnu
CONTEXT = 4096
HELD_EXPERTS = 32


@dataclass(frozen=True, slots=True)
class OperatorCase:
    """One call. `read`: bytes of its arguments, each once; of experts and keys only those that are asked for."""

    operator: str
    what: str
    tokens: int
    arguments: tuple[Any, ...]
    read: int

    def moved(self, result: Any) -> int:
        """Bytes that are read and written by a call with this result, a tensor or a tuple of them."""
        return self.read + sum(map(_size, result if isinstance(result, tuple) else (result,)))


class _Maker:
    """Random arguments of a model's widths on one device."""

    def __init__(self, config: ModelConfig, device: torch.device, tokens: int) -> None:
        self.c, self.device, self.T = config, device, tokens

    def randn(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def fp8(self, *shape: int) -> tuple[Tensor, Tensor]:
        scale = (*shape[:-2], ceil_div(shape[-2], 128), ceil_div(shape[-1], 128))
        return self.randn(*shape, dtype=E4M3), self._scale(*scale)

    def rounded(self, columns: int) -> tuple[Tensor, Tensor]:
        return self.randn(self.T, columns, dtype=E4M3), torch.ones(self.T, columns // 128, device=self.device)

    def experts(self) -> ExpertWeights:
        E, H, MI = min(HELD_EXPERTS, self.c.n_routed_experts), self.c.hidden_size, self.c.moe_intermediate_size
        w1, w3 = self._codes(E, 2, MI, H // 2).unbind(1)
        s1, s3 = self._scale(E, 2, MI, H // 32).unbind(1)
        return ExpertWeights(w1, w3, self._codes(E, H, MI // 2), s1, s3, self._scale(E, H, MI // 32), 0)

    def ids(self, experts: int) -> Tensor:
        return torch.rand(self.T, experts, device=self.device).argsort(-1)[:, : self.c.num_experts_per_tok].int()

    def _codes(self, *shape: int) -> Tensor:
        return torch.randint(256, shape, dtype=torch.uint8, device=self.device)

    def _scale(self, *shape: int) -> Tensor:
        return torch.full(shape, 120, dtype=torch.uint8, device=self.device).view(E8M0)


def operator_cases(config: ModelConfig, device: torch.device, tokens: int) -> Iterable[OperatorCase]:
    """The forward pass's operators for `tokens` tokens; made one by one, since all at once may not fit."""
    make = _Maker(config, device, tokens)
    for operator, what, build in (*_dense(make), *_rows(make), *_attention(make)):
        arguments = build()
        yield OperatorCase(operator, what, tokens, arguments, bytes_read(operator, arguments))
    yield _experts(make)


Build = tuple[str, str, Callable[[], tuple[Any, ...]]]


def _dense(m: _Maker) -> tuple[Build, ...]:
    c, T = m.c, m.T
    H, QR, heads = c.hidden_size, c.q_lora_rank, c.num_attention_heads * c.head_dim
    K = heads // c.o_groups
    return (
        ("fp8_linear", "wq_b", lambda: (*m.rounded(QR), *m.fp8(heads, QR))),
        ("fp8_linear", "wo_b", lambda: (*m.rounded(c.o_groups * c.o_lora_rank), *m.fp8(H, c.o_groups * c.o_lora_rank))),
        ("fp8_linear", "shared w1", lambda: (*m.rounded(H), *m.fp8(c.moe_intermediate_size, H))),
        ("fp8_grouped_linear", "wo_a",
         lambda: (m.randn(T, c.o_groups, K), *m.fp8(c.o_groups, c.o_lora_rank, K), BF16)),
        ("linear", "compressor", lambda: (m.randn(T, H), m.randn(2 * c.head_dim, H), FP32)),
        ("gate_scores", "gate", lambda: (m.randn(T, H), m.randn(c.n_routed_experts, H))),
    )  # fmt: skip


def _rows(m: _Maker) -> tuple[Build, ...]:
    c, T, M = m.c, m.T, m.c.hc_mult
    H, mixes = c.hidden_size, M * (M + 2)
    hc = (c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps)
    return (
        ("rms_norm", "hidden", lambda: (m.randn(T, H), m.randn(H), c.rms_norm_eps)),
        ("act_quant", "hidden", lambda: (m.randn(T, H),)),
        ("hadamard", "index queries", lambda: (m.randn(T, c.index_n_heads, c.index_head_dim),)),
        ("fp4_act_quant_roundtrip", "index queries", lambda: (m.randn(T, c.index_n_heads, c.index_head_dim),)),
        ("apply_rope", "queries", lambda: (
            m.randn(T, c.num_attention_heads, c.head_dim)[..., -c.qk_rope_head_dim :],
            *(m.randn(T, 1, c.qk_rope_head_dim // 2, dtype=FP32) for _ in range(2)))),
        ("hc_pre", "streams", lambda: (
            m.randn(T, M, H), m.randn(mixes, M * H, dtype=FP32) / 100, m.randn(3, dtype=FP32),
            m.randn(mixes, dtype=FP32), *hc)),
        ("hc_split_sinkhorn", "mixes", lambda: (
            m.randn(T, mixes, dtype=FP32), m.randn(3, dtype=FP32), m.randn(mixes, dtype=FP32), M, *hc[:2])),
        ("hc_post", "streams", lambda: (
            m.randn(T, H), m.randn(T, M, H), m.randn(T, M, dtype=FP32), m.randn(T, M, M, dtype=FP32))),
        ("swiglu", "shared", lambda: (
            m.randn(T, c.moe_intermediate_size), m.randn(T, c.moe_intermediate_size), c.swiglu_limit)),
        ("route", "experts", lambda: (
            m.randn(T, c.n_routed_experts, dtype=FP32).abs(), m.randn(c.n_routed_experts, dtype=FP32),
            c.num_experts_per_tok, c.routed_scaling_factor)),
    )  # fmt: skip


def _attention(m: _Maker) -> tuple[Build, ...]:
    c, T = m.c, m.T
    entries = CONTEXT // 4
    listed = c.sliding_window + min(c.index_topk, entries)

    def sparse() -> tuple[Any, ...]:
        kv = m.randn(1, entries + 2 * c.sliding_window, c.head_dim)
        idx = torch.randint(kv.shape[1], (1, T, listed), dtype=torch.int32, device=m.device)
        q = m.randn(1, T, c.num_attention_heads, c.head_dim)
        return q, kv, m.randn(c.num_attention_heads, dtype=FP32), idx, c.head_dim**-0.5

    return (
        ("sparse_attention", f"{listed} keys", sparse),
        ("indexer_scores", f"{entries} entries", lambda: (
            m.randn(1, T, c.index_n_heads, c.index_head_dim), m.randn(1, entries, c.index_head_dim),
            m.randn(1, T, c.index_n_heads, dtype=FP32))),
        ("topk_visible", f"of {entries} entries", lambda: (
            m.randn(1, T, entries, dtype=FP32), torch.full((1, T), entries, device=m.device), c.index_topk)),
    )  # fmt: skip


def _experts(m: _Maker) -> OperatorCase:
    experts, c = m.experts(), m.c
    held = len(experts.w1)
    weights = torch.rand(m.T, c.num_experts_per_tok, device=m.device)
    x = m.randn(m.T, c.hidden_size)
    ids = m.ids(held)
    parts = (experts.w1, experts.w3, experts.w2, experts.s1, experts.s3, experts.s2)
    chosen = sum(map(_size, parts)) * len(torch.unique(ids)) // held
    arguments = (x, ids, weights, experts, c.swiglu_limit, True)
    return OperatorCase("moe_experts", f"{held} FP4 experts", m.T, arguments, chosen + sum(map(_size, arguments)))


def bytes_read(operator: str, arguments: tuple[Any, ...]) -> int:
    """Bytes of an operator's tensors, each once; of attention's keys [1, N, D] those that some query lists."""
    total = sum(map(_size, arguments))
    if operator == "sparse_attention":
        _, kv, _, listed, _ = arguments
        asked_for = len(torch.unique(listed[listed >= 0]))
        total -= _size(kv) * (kv.shape[1] - asked_for) // kv.shape[1]
    return total


def _size(argument: Any) -> int:
    return argument.numel() * argument.element_size() if isinstance(argument, Tensor) else 0

"""Logits against transformers' DeepseekV4ForCausalLM in float32, and that defects in any part would show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_checkpoint import Checkpoint, random_tokens
from torch import Tensor
from transformers_oracle import Oracle

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.v4.model import Model

# The limit. Logits have a standard deviation of about 3; rounding of float32 leaves about 1e-4.
LIMIT = 1e-3


@pytest.fixture(scope="module")
def oracle(checkpoint: Checkpoint) -> Oracle:
    return Oracle(checkpoint.config, checkpoint.values)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 31, 32, 33, 64, 127, 128, 129, 255, 256, 300, 640])
def test_logits_at_all_positions(float32_model: Model, oracle: Oracle, length: int) -> None:
    tokens = random_tokens(length, seed=length)
    ours, theirs = float32_model.logits(tokens), oracle.logits(tokens)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= LIMIT


class NoInverseRope(Operators):
    @staticmethod
    def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False, out: Tensor | None = None) -> Tensor:
        return x if inverse else reference.apply_rope(x, cos, sin, out=out)


class HalvesRope(Operators):
    @staticmethod
    def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False, out: Tensor | None = None) -> Tensor:
        order = torch.arange(x.shape[-1]).view(2, -1).mT.flatten()  # pairs (i, i + r/2) instead of (2i, 2i + 1)
        y = torch.empty_like(x)
        y[..., order] = reference.apply_rope(x[..., order], cos, sin, inverse)
        return y if out is None else out.copy_(y)


class UntransposedComb(Operators):
    @staticmethod
    def hc_post(o: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        return reference.hc_post(o, x, post, comb.mT)


class UnclampedShared(Operators):
    @staticmethod
    def swiglu(gate: Tensor, up: Tensor, limit: float, weight: Tensor | None = None) -> Tensor:
        return reference.swiglu(gate, up, torch.inf, weight)  # the routed experts do not come here


class ScaledSink(Operators):
    @staticmethod
    def sparse_attention(q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float, *rest: Any) -> Tensor:
        return reference.sparse_attention(q, kv, sink * scale, idx, scale, *rest)


class NoSink(Operators):
    @staticmethod
    def sparse_attention(q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float, *rest: Any) -> Tensor:
        return reference.sparse_attention(q, kv, torch.full_like(sink, -torch.inf), idx, scale, *rest)


class BiasWeighs(Operators):
    @staticmethod
    def route(scores: Tensor, bias: Tensor | None, topk: int, route_scale: float) -> tuple[Tensor, Tensor]:
        return reference.route(scores if bias is None else scores + bias, None, topk, route_scale)


class LastEntries(Operators):
    @staticmethod
    def topk_visible(scores: Tensor, visible: Tensor, k: int, offset: int = 0) -> Tensor:
        return reference.topk_visible(torch.arange(scores.shape[-1]).expand_as(scores).float(), visible, k, offset)


DEFECTS = [NoInverseRope, HalvesRope, UntransposedComb, UnclampedShared, ScaledSink, NoSink, BiasWeighs, LastEntries]


@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_operator_defect_is_caught(float32_model: Model, oracle: Oracle, defect: type[Operators]) -> None:
    tokens = random_tokens(300)
    float32_model.ops = defect()
    assert (float32_model.logits(tokens) - oracle.logits(tokens)).abs().max() > 100 * LIMIT


def _plain_rope_everywhere(ratio: int) -> bool:
    return False


def _yarn_everywhere(ratio: int) -> bool:
    return True


@pytest.mark.parametrize("choice", [_plain_rope_everywhere, _yarn_everywhere])
def test_planted_rope_defect_is_caught(
    float32_model: Model, oracle: Oracle, choice: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "rope", lambda model, ratio: model._ropes[choice(ratio)])
    tokens = random_tokens(300)
    assert (float32_model.logits(tokens) - oracle.logits(tokens)).abs().max() > 100 * LIMIT


@pytest.mark.parametrize(
    "name",
    [
        "layers.1.attn.compressor.ape",
        "layers.2.attn.compressor.ape",
        "layers.1.attn.indexer.compressor.ape",
        "layers.0.hc_attn_base",
        "layers.4.ffn.gate.bias",
        "layers.3.attn.attn_sink",
        "hc_head_base",
    ],
)
def test_each_parameter_matters(checkpoint: Checkpoint, float32_model: Model, name: str) -> None:
    # Otherwise agreement with the oracle would say nothing about that part.
    changed = dict(checkpoint.values)
    changed[name] = checkpoint.values[name].flip(0)
    tokens = random_tokens(300)
    other = Oracle(checkpoint.config, changed)
    assert (float32_model.logits(tokens) - other.logits(tokens)).abs().max() > 100 * LIMIT

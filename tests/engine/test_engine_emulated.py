"""A model with FP8 emulated writes the same tokens with the same log-probabilities, to the bit, and computes no FP8."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from engine_checkpoint import random_tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flagrelease import engine
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.synthetic import random_model
from flagrelease.device import open_device
from flagrelease.engine.kernels.emulated_operators import emulating
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.reference import e4m3
from flagrelease.engine.numerics import NumericsName
from flagrelease.engine.v4.model import Model
from flagrelease.model.v4 import cache_size

FP8 = (torch.float8_e4m3fn, torch.float8_e8m0fnu)


class Conversions(TorchDispatchMode):
    """Counts what torch converts from and to FP8."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ != "view":
            kinds = {x.dtype for x in (*args, result) if isinstance(x, Tensor)}
            self.count += len(kinds) > 1 and bool(kinds & set(FP8))
        return result


@torch.inference_mode()
def written(model: Model, prompt: list[int], count: int) -> tuple[list[int], list[Tensor], int]:
    """Greedy tokens, the log-probabilities that they were chosen by, and FP8 conversions on the way."""
    tokens: list[int] = []
    logprobs: list[Tensor] = []
    cache = model.new_cache(1, len(prompt) + count)
    with Conversions() as conversions:
        logits = model.extend(cache, [prompt])
        for _ in range(count):
            logprobs.append(logits[0].log_softmax(-1).clone())
            tokens.append(int(logits[0].argmax()))
            logits = model.decode(cache, [tokens[-1]])
    return tokens, logprobs, conversions.count


def assert_same(one: Model, other: Model, count: int = 6, length: int = 140) -> None:
    prompt = random_tokens(length)
    (tokens, logprobs, _), (same, same_logprobs, conversions) = (written(m, prompt, count) for m in (one, other))
    assert same == tokens
    assert all(torch.equal(a, b) for a, b in zip(same_logprobs, logprobs, strict=True))
    assert conversions == 0


@pytest.mark.parametrize("numerics", ["native", "fp8"])
def test_a_release_in_torch(numerics: NumericsName, native_release: Path, bf16_release: Path) -> None:
    release = native_release if numerics == "native" else bf16_release
    assert_same(engine.load(release, numerics), engine.load(release, numerics, operators="emulated"), 4)


def test_keys_in_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_size, "CODED_FROM", 1)
    config, cpu = dimensions("tiny", 2), open_device("cpu")
    assert_same(*(random_model(config, "native", name, cpu, 32) for name in ("torch", "emulated")), 3, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_release_in_triton(native_release: Path) -> None:
    """In the interpreter, which multiplies the numbers of codes in FP32 whether they come as FP8 or as bytes."""
    plain, emulated = (engine.load(native_release, "native", operators="triton") for _ in range(2))
    emulated.ops = emulating(emulated.ops)
    assert_same(plain, emulated, count=2, length=20)


def test_what_torch_converts_is_counted(native_release: Path) -> None:
    assert written(engine.load(native_release, "native"), random_tokens(20), 1)[2] > 0


def test_planted_rounding_of_ties_is_seen(monkeypatch: pytest.MonkeyPatch, native_release: Path) -> None:
    exact = e4m3.nearest_e4m3

    def away(y: Tensor) -> Tensor:
        return exact((y.contiguous().view(torch.int32) + 1).view(torch.float32))

    plain = written(engine.load(native_release, "native"), random_tokens(140), 1)[1]
    monkeypatch.setattr(e4m3, "nearest_e4m3", away)
    emulated = written(engine.load(native_release, "native", operators="emulated"), random_tokens(140), 1)[1]
    assert not torch.equal(plain[0], emulated[0])


def test_a_run_says_that_fp8_is_emulated(native_release: Path) -> None:
    assert engine.load(native_release, operators="emulated").ops.name == "torch (FP8 emulated)"
    assert cast(Operators, engine.load(native_release).ops).name == "torch"

"""Decoding two tokens a row with static shapes, and drafts: what the plain passes give."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_checkpoint import random_tokens
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.device import Device
from flagrelease.engine.batch import runner as runner_module
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.drafter import Drafter
from flagrelease.engine.decode.stepper import CapturedStepper
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

LENGTHS = (127, 7, 62)  # the first step, in which sizes are captured, completes windows
CONTEXT = 300
# Tokens of each row in each step: windows of 4 and of 128 are completed by first and by second tokens.
# At the end there are fewer rows: as many as make sizes of their own.
STEPS = [
    *[(2, 2, 2), (2, 1, 0), (0, 2, 1), (1, 2, 2), (2, 0, 2), (1, 1, 1), (2, 2, 2), (2, 2, 1)],
    *[(2, 2, 0), (1, 1, 0), (2, 0, 0), (1, 0, 0), (2, 0, 0)],
]


def record_like_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a device with graphs, and operators that do not wait: the work runs twice before it is recorded."""

    def capture(device: Device, work: Callable[[], None]) -> Callable[[], None]:
        work()
        work()
        return work

    monkeypatch.setattr(Device, "capture", capture)
    monkeypatch.setattr(Operators, "captured", True)


def replay(model: Model, native: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of every token, and of every draft, by the plain passes and by static ones; rejecting one now and then."""
    plain, static = model.new_cache(3, CONTEXT), model.new_cache(3, CONTEXT)
    plain_drafts, static_drafts = model.new_draft_cache(3, CONTEXT), model.new_draft_cache(3, CONTEXT)
    decoder = Decoder(model, static, width=2)
    drafter = Drafter(model, static_drafts, decoder.features)
    for cache in (plain, static):
        model.extend(cache, [random_tokens(n, seed=n) for n in LENGTHS])
    for drafts in (plain_drafts, static_drafts):
        streams = torch.randn(3, 127, model.config.hc_mult, model.config.hidden_size, generator=torch.manual_seed(0))
        model.draft(
            drafts, streams.to(model.head.device, model.numerics.dtype), [random_tokens(n, seed=n + 1) for n in LENGTHS]
        )
    expected, got = [], []
    for n, counts in enumerate(STEPS):
        tokens = [random_tokens(count, seed=10 * n + row) for row, count in enumerate(counts)]
        streams = model.advance(plain, tokens)
        logits, static_logits = model.read_out(streams), decoder.advance(tokens)
        assert plain.lengths == static.lengths
        drafted = model.draft(plain_drafts, streams, tokens), drafter.draft(tokens)
        for row, count in enumerate(counts):
            if count:
                expected += [*logits[row, :count], drafted[0][row]]
                got += [*static_logits[row, :count].clone(), drafted[1][row].clone()]
            if count == 2 and n % 2:
                plain.take_back(row)
                static.take_back(row)
                plain_drafts.take_back(row)
                static_drafts.take_back(row)
    return expected, got


def test_float32_logits_of_every_step(bf16_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_like_a_graph(monkeypatch)
    expected, got = replay(engine.load(bf16_release, "bf16", torch.float32, mtp=True))
    assert len(expected) > 40
    for a, b in zip(expected, got, strict=True):
        assert (a - b).abs().max() <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("operators", ["torch", "triton", "auto"])
def test_captured_on_the_device(bf16_release: Path, operators: str) -> None:
    model = engine.load(bf16_release, "bf16", torch.float32, "auto", operators=operators, mtp=True)
    expected, got = replay(model)
    for a, b in zip(expected, got, strict=True):
        assert (a - b).abs().max() <= 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("operators", ["torch", "triton", "auto"])
def test_the_same_text_on_the_device_with_drafts_and_without(
    bf16_release: Path, tmp_path: Path, operators: str
) -> None:
    write_tokenizer(tmp_path)
    model = engine.load(bf16_release, "bf16", torch.float32, "auto", operators=operators, mtp=True)
    tokenizer = Tokenizer(tmp_path)
    prompts = [random_tokens(n, seed=n, vocabulary=263) for n in (1, 30, 127, 64)]
    how = Sampling(temperature=1, seed=5, max_tokens=60)
    plain, drafted = (
        generate_all(Scheduler(Runner(model, 3, CONTEXT, speculate=speculate), tokenizer), prompts, how)
        for speculate in (False, True)
    )
    assert [result.text for result in drafted] == [result.text for result in plain]
    assert all(result.drafted for result in drafted)


def test_native_numerics(native_release: Path) -> None:
    expected, got = replay(engine.load(native_release, "native", mtp=True))
    difference = torch.stack([(a - b).norm() / a.norm() for a, b in zip(expected, got, strict=True)])
    # one flipped rounding changes all that follows, so most, not all, are the same
    assert difference.median() <= 0.05


@pytest.mark.parametrize("speculate", [False, True])
def test_a_runner_with_captured_steps_gives_the_same_text(
    bf16_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speculate: bool
) -> None:
    write_tokenizer(tmp_path)
    model, tokenizer = engine.load(bf16_release, "bf16", torch.float32, mtp=True), Tokenizer(tmp_path)
    prompts = [random_tokens(n, seed=n, vocabulary=263) for n in (1, 30, 127, 64)]
    how = Sampling(temperature=1, seed=5, max_tokens=25)
    plain = generate_all(Scheduler(Runner(model, 3, CONTEXT), tokenizer), prompts, how)
    monkeypatch.setattr(runner_module, "choose_stepper", CapturedStepper)
    captured = generate_all(Scheduler(Runner(model, 3, CONTEXT, speculate=speculate), tokenizer), prompts, how)
    assert [result.text for result in captured] == [result.text for result in plain]
    assert any(result.drafted for result in captured) == speculate


def test_numbers_of_a_step_lie_side_by_side(bf16_release: Path) -> None:
    """Kernels take row b's from address b; two tokens of one row of three are three apart in the feed."""
    model = engine.load(bf16_release, "bf16", torch.float32, mtp=True)
    feed = Decoder(model, model.new_cache(3, 8), width=2)._feed
    feed.positions.copy_(torch.arange(6))
    for width, rows in [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3)]:
        step = feed._at(width, rows, 8)
        assert step.positions.tolist() == [3 * n + row for n in range(width) for row in range(rows)]
        assert all(each.stride() == (1,) for each in (step.tokens, step.positions, step.visible))


def test_what_a_recording_reads_is_held(bf16_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph knows addresses only, and the model drops its tables for the longer ones of a later cache."""
    record_like_a_graph(monkeypatch)
    model = engine.load(bf16_release, "bf16", torch.float32)
    decoder = Decoder(model, model.new_cache(1, 8))
    tables = [weakref.ref(table) for ratio in (0, 4) for table in (model.rope(ratio).cos, model.rope(ratio).sin)]
    decoder.decode([1])
    model.new_cache(1, 9)
    assert len(model.rope(0).cos) == 9
    assert all(table() is not None for table in tables)
    decoder.forget()
    assert all(table() is None for table in tables)


def test_refusals(bf16_release: Path) -> None:
    model = engine.load(bf16_release, "bf16", torch.float32, mtp=True)
    decoder = Decoder(model, model.new_cache(1, 3), width=2)
    decoder.advance([[1, 2]])
    with pytest.raises(UsageError, match="4 tokens; its cache has a context of 3"):
        decoder.advance([[1, 2]])
    with pytest.raises(UsageError, match="without its MTP stage"):
        Drafter(engine.load(bf16_release, "bf16", torch.float32), model.new_cache(1, 3), decoder.features)

"""Static steps over ranks: their collectives make them what the plain pass gives, on one rank and on several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, random_tokens, small_config
from ranks import OMode, on_ranks, write_mp
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch import runner as runner_module
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.decode import layers as layers_module
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.drafter import Drafter
from flagrelease.engine.decode.stepper import CapturedStepper
from flagrelease.engine.numerics import NumericsName
from flagrelease.engine.parallel import Groups
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

LENGTHS = (5, 125, 62)  # windows of 4 and of 128 are completed on the way
CONTEXT = 200
# Tokens of each row in each step.
STEPS = [(2, 2, 2), (1, 2, 0), (2, 0, 1), (0, 1, 2), (1, 1, 1)]
# float32; a different order of additions only.
LIMIT = 1e-3

Job = tuple[Path, NumericsName, torch.dtype]
EXACT: tuple[NumericsName, torch.dtype] = ("bf16", torch.float32)


def decoded(model: Model, *, plainly: bool) -> torch.Tensor:
    """Logits after every token and of every draft, [n, V], after prompts that are prefilled."""
    cache, drafts = model.new_cache(3, CONTEXT), model.new_draft_cache(3, CONTEXT)
    decoder = Decoder(model, cache, width=2)
    drafter = Drafter(model, drafts, decoder.features)
    model.extend(cache, [random_tokens(n, seed=n) for n in LENGTHS])
    rows = []
    for n, counts in enumerate(STEPS):
        tokens = [random_tokens(count, seed=10 * n + row) for row, count in enumerate(counts)]
        if plainly:
            streams = model.advance(cache, tokens)
            logits, drafted = model.read_out(streams), model.draft(drafts, streams, tokens)
        else:
            logits, drafted = decoder.advance(tokens), drafter.draft(tokens)
        for row, count in enumerate(counts):
            rows += [*logits[row, :count].clone(), drafted[row].clone()] if count else []
    return torch.stack(rows).cpu()


def statically(jobs: list[Job], device: str = "cpu", operators: str = "torch") -> list[torch.Tensor]:
    """Several releases in one set of processes."""
    models = (engine.load(*job, device, operators=operators, mtp=True) for job in jobs)
    return [decoded(model, plainly=False) for model in models]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(small_config(num_attention_heads=8, o_lora_rank=256), seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decode-ranks")


@pytest.fixture(scope="module")
def native(checkpoint: Checkpoint, folder: Path) -> Path:
    return checkpoint.write_hf(folder / "native", "native")


@pytest.fixture(scope="module")
def expected(native: Path) -> torch.Tensor:
    """By the plain pass of one rank."""
    return decoded(engine.load(native, *EXACT, mtp=True), plainly=True)


@pytest.fixture(scope="module")
def two(native: Path) -> list[torch.Tensor]:
    jobs: list[Job] = [(native, *EXACT), (native, "native", torch.bfloat16)]
    got: list[torch.Tensor] = on_ranks(2, statically, jobs)
    return got


def test_two_ranks_in_float32(two: list[torch.Tensor], expected: torch.Tensor) -> None:
    assert len(expected) > 20
    assert (two[0] - expected).abs().max() <= LIMIT


def test_two_ranks_in_native_numerics(two: list[torch.Tensor], native: Path) -> None:
    plain = decoded(engine.load(native, "native", mtp=True), plainly=True)
    # One flipped rounding changes all that follows, and one of a head's norm, whose factor is BF16, moves all of the
    # head by 2^-8: measured 0.08. One rank's fused step gives the plain pass's bits.
    distance = ((two[1] - plain).norm(dim=-1) / plain.norm(dim=-1)).median()
    assert distance <= 0.1
    assert distance < 0.2 * ((two[0] - plain).norm(dim=-1) / plain.norm(dim=-1)).median()  # planted: other numerics


def test_ranks_that_share_an_o_group(checkpoint: Checkpoint, folder: Path, expected: torch.Tensor) -> None:
    modes: tuple[OMode, ...] = ("shared", "split")
    cuts = [write_mp(checkpoint, folder / mode, "native", 4, mode) for mode in modes]
    for mode, got in zip(modes, on_ranks(4, statically, [(cut, *EXACT) for cut in cuts]), strict=True):
        assert (got - expected).abs().max() <= LIMIT, mode


def planted(release: Path) -> dict[str, torch.Tensor]:
    """A defect of each collective that the step has of its own."""
    model = engine.load(release, *EXACT, mtp=True)
    defects = {
        "the shared expert on every rank": (Groups, "is_leader", property(lambda groups: True)),
        "parts of wo_b not summed over ranks": (Groups, "sum_output", lambda groups, x: x),
        "one part of several": (layers_module, "_added", lambda ops, parts: parts[:1].float().contiguous()),
    }
    results = {}
    for name, (owner, attribute, defect) in defects.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, attribute, defect)
            results[name] = decoded(model, plainly=False)
    return results


def test_planted_defects_are_seen(native: Path, expected: torch.Tensor) -> None:
    for name, got in on_ranks(2, planted, native).items():
        assert (got - expected).abs().max() > 100 * LIMIT, name


def texts(release: Path, folder: Path) -> list[tuple[str, bool]]:
    model = engine.load(release, *EXACT, mtp=True)
    scheduler = Scheduler(Runner(model, 3, 300, speculate=True), Tokenizer(folder))
    if not model.groups.is_leader:
        scheduler.runner.follow()
        return []
    prompts = [random_tokens(n, seed=n, vocabulary=263) for n in (1, 30, 127, 64)]
    results = generate_all(scheduler, prompts, Sampling(temperature=1, seed=5, max_tokens=25))
    scheduler.runner.stop()
    return [(result.text, bool(result.drafted)) for result in results]


def texts_of_captured_steps(release: Path, folder: Path) -> list[tuple[str, bool]]:
    """As on accelerators; a CPU runs the same operators without capturing them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "choose_stepper", CapturedStepper)
        return texts(release, folder)


def test_a_runner_on_two_ranks_writes_the_same_text(native: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert on_ranks(2, texts_of_captured_steps, native, tmp_path) == texts(native, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("operators", ["triton", "auto"])
def test_captured_on_two_devices(operators: str, native: Path, expected: torch.Tensor) -> None:
    """The processes end, too: no graph holds their collectives any more."""
    (got,) = on_ranks(2, statically, [(native, *EXACT)], "auto", operators, backend="nccl")
    assert (got - expected).abs().max() <= LIMIT

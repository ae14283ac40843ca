"""DSpark's stages of every release format draft, and change no text: `serve` loads them unless it is told not to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dspark_small import STAGES
from engine_checkpoint import Checkpoint, random_tokens, small_config
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.engine.batch import guessing
from flagrelease.engine.batch import runner as runner_module
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.decode.stepper import CapturedStepper
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import read_source

FORMATS = ("w8a8-ascend", "bf16", "fp8", "fp8-e8m0", "fp8-bf16-wo-a", "int8", "int8-experts", "fp8-channel", "mxfp8")
OF_FLOATS = ("bf16", "fp8", "fp8-e8m0", "fp8-bf16-wo-a")  # their own numerics round to FP8 or know no float32


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(num_attention_heads=8, o_groups=2, o_lora_rank=256, **STAGES)
    return Checkpoint(config, seed=9).write_hf(tmp_path_factory.mktemp("source"), "native")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_drafts(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plan = make_plan(read_source(source), [parse_target(f"{name}:hf", "shared")], ConvertSpec(lossy_repack="allow"))
    convert(plan, tmp_path, workers=1, lookup=cpu_lookup, progress=lambda done: None)
    write_tokenizer(tmp_path)
    numerics = "bf16" if name in OF_FLOATS else None
    model = engine.load(tmp_path / f"{name}-hf", numerics, torch.float32, mtp=True)
    monkeypatch.setattr(guessing, "SURVIVAL", 0.0)
    prompts, how = [random_tokens(n, seed=n, vocabulary=263) for n in (20, 33)], Sampling(temperature=0, max_tokens=9)

    def texts(*, speculate: bool) -> list[str]:
        scheduler = Scheduler(Runner(model, 2, 60, speculate=speculate), Tokenizer(tmp_path))
        results = generate_all(scheduler, prompts, how)
        assert all(len(result.acceptance.verified) == 5 for result in results) == speculate
        return [result.text for result in results]

    expected = texts(speculate=False)
    assert texts(speculate=True) == expected
    monkeypatch.setattr(runner_module, "choose_stepper", CapturedStepper)
    assert texts(speculate=True) == expected

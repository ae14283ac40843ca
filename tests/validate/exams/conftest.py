"""A small model with random weights; its makers live beside the engine's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "engine"))

from engine_checkpoint import Checkpoint, small_config
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.text import Tokenizer


@pytest.fixture(scope="session")
def small_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = Checkpoint(small_config()).write_hf(tmp_path_factory.mktemp("small") / "bf16-hf", "bf16")
    write_tokenizer(release)
    return release


@pytest.fixture
def scheduler(small_release: Path) -> Scheduler:
    """In float32, where the company of other sequences changes no sampled token."""
    torch.set_num_threads(1)
    model = engine.load(small_release, "bf16", torch.float32)
    return Scheduler(Runner(model, rows=4, context=400), Tokenizer(small_release))

"""A scheduler of the small model with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.text import Tokenizer


@pytest.fixture
def scheduler(small_release: Path) -> Scheduler:
    """In float32, where the company of other sequences changes no sampled token."""
    torch.set_num_threads(1)
    model = engine.load(small_release, "bf16", torch.float32)
    return Scheduler(Runner(model, rows=4, context=400), Tokenizer(small_release))

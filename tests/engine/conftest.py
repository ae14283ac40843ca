"""Checkpoints that are written once for all engine tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dspark_small import STAGES
from engine_checkpoint import Checkpoint, small_config

from flagrelease import engine
from flagrelease.engine.v4.model import Model


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """The models are too small to gain from threads, and tests of several ranks share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return Checkpoint(small_config())


@pytest.fixture(scope="session")
def bf16_release(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.write_hf(tmp_path_factory.mktemp("bf16-hf"), "bf16")


@pytest.fixture(scope="session")
def quick_checkpoint() -> Checkpoint:
    """Two layers, of ratio 4 and 128, and an MTP stage: for tests of what is around a model, at half a step's time."""
    return Checkpoint(small_config(num_hidden_layers=2, compress_ratios=[4, 128, 0]), seed=1)


@pytest.fixture(scope="session")
def quick_release(quick_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_checkpoint.write_hf(tmp_path_factory.mktemp("quick-hf"), "bf16")


@pytest.fixture(scope="session")
def native_release(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.write_hf(tmp_path_factory.mktemp("native-hf"), "native")


@pytest.fixture
def float32_model(bf16_release: Path) -> Model:
    """In float32, so that what remains of a difference is the order of additions."""
    return engine.load(bf16_release, "bf16", torch.float32)


@pytest.fixture(scope="session")
def dspark(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A model with three DSpark stages, and a native release of it."""
    checkpoint = Checkpoint(small_config(**STAGES), seed=3)
    return checkpoint, checkpoint.write_hf(tmp_path_factory.mktemp("dspark"), "native")

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_releases import Maker, checkpoint_tensors, write_source


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A maker for the ordinary source; tests change copies of it (`dataclasses.replace`)."""
    tensors = checkpoint_tensors(torch.Generator().manual_seed(0))
    source: Path = write_source(tmp_path_factory.mktemp("plain") / "source", tensors)
    return Maker(source, tensors)

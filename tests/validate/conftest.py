from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from plain_releases import Maker, ordinary_tensors, write_source


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small take longer on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A maker for the ordinary source; tests change copies of it (`dataclasses.replace`)."""
    source: Path = write_source(tmp_path_factory.mktemp("plain") / "source", ordinary_tensors())
    return Maker(source, ordinary_tensors())

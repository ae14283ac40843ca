from __future__ import annotations

from pathlib import Path

import pytest
from plain_releases import Maker, ordinary_tensors, write_source


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A maker for the ordinary source; tests change copies of it (`dataclasses.replace`)."""
    source: Path = write_source(tmp_path_factory.mktemp("plain") / "source", ordinary_tensors())
    return Maker(source, ordinary_tensors())

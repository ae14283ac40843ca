from __future__ import annotations

from pathlib import Path

import pytest
from publish_release import write_release, write_report


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "fp8-mp8")


@pytest.fixture
def report(release: Path, tmp_path: Path) -> Path:
    return write_report(release, tmp_path / "report.json")

"""One source with its releases and its baseline, and one validation of them, for all tests of the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_validation import Workshop, build

from flagrelease import cli


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = build(tmp_path_factory.mktemp("validation"))
    assert cli.main(made.recording(made.baseline)) == 0
    return made


@pytest.fixture(scope="session")
def validated(workshop: Workshop) -> Path:
    """The folder of a whole validation of the BF16 release, never interrupted."""
    out = workshop.folder / "validated"
    assert cli.main(workshop.validation(workshop.release("bf16"), out)) == 0
    return out

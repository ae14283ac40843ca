"""Where the consumers of releases are installed: in a folder that `make_environment.sh` made, given as --consumers."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def consumers(pytestconfig: pytest.Config) -> Path:
    """The folder; a run that asks for these tests alone must name it."""
    folder = pytestconfig.getoption("--consumers")
    if folder is None:
        if pytestconfig.option.markexpr == "consumers":
            pytest.fail(
                "-m consumers: name the folder that tests/consumers/make_environment.sh made: --consumers FOLDER"
            )
        pytest.skip("needs the consumers of releases: --consumers FOLDER, made by tests/consumers/make_environment.sh")
    assert (Path(folder) / "venv" / "bin" / "python").exists(), f"{folder}: no venv in it"
    return Path(folder)

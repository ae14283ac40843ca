"""Ray clusters of two nodes on this machine, in an environment of their own, and `flagrelease convert` on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_nodes import ROOT, TwoNodes


@pytest.fixture(scope="session")
def python(pytestconfig: pytest.Config) -> Path:
    """The Python of the environment; a run that asks for these tests alone must name its folder."""
    folder = pytestconfig.getoption("--ray")
    if folder is None:
        if pytestconfig.option.markexpr == "cluster":
            pytest.fail("-m cluster: name the folder that tests/cluster/make_environment.sh made: --ray FOLDER")
        pytest.skip("needs Ray: --ray FOLDER, made by tests/cluster/make_environment.sh")
    found = Path(folder) / "ray" / "bin" / "python"
    assert found.exists(), f"{folder}: no environment in it"
    return found.absolute()


@pytest.fixture
def cluster(python: Path, tmp_path: Path) -> Iterator[Callable[[int, int], TwoNodes]]:
    """Starts a cluster whose nodes have so many CPUs."""
    started = []

    def start(first: int, second: int) -> TwoNodes:
        started.append(TwoNodes(python, tmp_path / "cluster.log", cpus=(first, second)))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def flagrelease(python: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of this tree in the environment."""
    started = []

    def start(*words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [python, "-m", "flagrelease", *map(str, words)],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for one in started:
        if one.poll() is None:  # the test failed
            one.kill()
            one.communicate()

"""The command itself, killed at random requests to the hub: three releases, from a source larger than the budget."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from disk_places import held
from harness import contents
from huggingface_standin import TOKEN, HuggingFaceStandIn
from loopback import Fault

from flagrelease.cli import main
from flagrelease.records.manifest import MANIFEST_NAME

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples/tiny/flagrelease-tiny-v4"
CHIPS = ("--chip", "nvidia", "--chip", "ascend:bf16-mp16")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HuggingFaceStandIn]:
    server = HuggingFaceStandIn(tmp_path / "cas")
    yield server
    server.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trained model's, with files that are small beside it."""
    document = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text())
    document["convert"] |= {"max_file_bytes": 600_000, "rank_part_bytes": 600_000}
    document["source"]["path"] = str(TINY)
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_requests(
    seed: int, hub: HuggingFaceStandIn, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), *CHIPS, "--disk", "1GB", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    budget = planned["passes"]["least_bytes"]
    assert len(planned["releases"]) == 3
    assert budget < planned["source_bytes"] / 2 < planned["bytes_to_write"] / 10
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "flagrelease", "convert", str(recipe), *CHIPS, "--out", str(out), "--disk", str(budget),
        "--to", "hf", "--workers", "2",
    ]  # fmt: skip
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    rng = random.Random(seed)
    kills, most = 0, [0]
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        left = [rng.randrange(20, 400)] if kills < 5 else [10**9]

        def count(process: subprocess.Popen[bytes] = process, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(process.pid, signal.SIGKILL)
            most[0] = max(most[0], held(out))

        hub.faults = [Fault(".*", "call", 10**9, hook=count)]
        said, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said.decode()
        kills += 1
    for repo in hub.repositories.values():
        for branch, commit in repo.history:
            tree = set(repo.commits[commit]) - {".gitattributes"}
            assert MANIFEST_NAME not in tree or tree == set(repo.tree(branch) or {}) - {".gitattributes"}
    assert kills == 5
    assert 0 < most[0] <= budget
    assert main(["convert", str(recipe), *CHIPS, "--out", str(tmp_path / "at-once")]) == 0
    for folder in ("fp8-hf", "fp8-mp8", "bf16-mp16"):
        whole = {
            path: hashlib.sha256(data).hexdigest() for path, data in contents(tmp_path / "at-once" / folder).items()
        }
        branches = [
            (name, branch)
            for name, repo in hub.repositories.items()
            for branch in repo.branches
            if branch.startswith(f"convert-{folder}-")
        ]
        assert len(branches) == 1
        assert hub.files(*branches[0]) == whole
        assert hub.files(branches[0][0], "main") == {}
    assert not list(out.rglob("*.safetensors"))

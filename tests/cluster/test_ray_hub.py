"""`convert --executor ray` of a checkpoint on a hub: every node reads the hub itself, and no node has a copy."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hubs import REPO, contents_of, huggingface
from ray_nodes import TwoNodes, until

from flagrelease.cli import main
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.manifest import read_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]


def under_way(out: Path) -> list[int]:
    """Processes of the jobs that make a part now."""
    noted = [path for path in out.glob("parts/*/progress") if not path.with_name("done.json").exists()]
    return [int(path.read_text().split()[2]) for path in noted]


def test_a_worker_is_lost_and_a_repository_is_closed(
    cluster: Callable[[int, int], TwoNodes],
    flagrelease: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_checkpoint(tmp_path / "checkpoint", tiny_config())
    assert (
        main(["convert", str(tmp_path / "checkpoint"), "--target", "bf16:mp8", "--out", str(tmp_path / "alone")]) == 0
    )
    with huggingface(tmp_path / "checkpoint", tmp_path / "cas", monkeypatch) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        nodes, out = cluster(2, 2), tmp_path / "out"
        words = ["convert", f"hf://{REPO}", "--target", "bf16:mp8", "--out", out]
        words += ["--executor", "ray", "--cluster", nodes.address, "--parts", 4]
        hub.gated = (403, "not in the list")
        closed = flagrelease(*words)
        _, errors = closed.communicate(timeout=600)
        assert closed.returncode == 6, errors
        assert "huggingface wants an account that may do this" in errors
        hub.gated = None
        running = flagrelease(*words)
        until(lambda: under_way(out) or running.poll() is not None)
        os.kill(under_way(out)[0], signal.SIGKILL)
        _, errors = running.communicate(timeout=600)
        assert running.returncode == 0, errors
        assert "its worker was lost" in errors
    made, alone = contents_of(out), contents_of(tmp_path / "alone")
    assert made.keys() == alone.keys()
    assert [name for name in made if made[name] != alone[name]] == ["bf16-mp8/manifest.json"]
    checked = read_manifest(out / "bf16-mp8").source.checked_against
    assert checked == "6 of 6 tensor files checked against the listing of Hugging Face"

"""kill -9 at every step of a publication, Xet on and off; the same command then ends it. No secret is left anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import modelscope_standin
import pytest
import test_modelscope
from huggingface_standin import TOKEN, HuggingFaceStandIn
from loopback import Fault, Loopback
from test_huggingface import API, REPO, assert_published, publication_of

STEPS = {
    "create": "POST /api/repos/create",
    "branch": f"POST {API}/branch/.*",
    "send": "PUT /blob/.*",
    "commit to the branch": f"POST {API}/commit/publish.*",
    "commit to main": f"POST {API}/commit/main",
    "tag": f"POST {API}/tag/.*",
    "remove the branch": f"DELETE {API}/branch/.*",
}


class Runner:
    """Runs the publication in a process, with a home of its own."""

    def __init__(self, hub: Loopback, release: Path, home: Path, xet: bool, name: str = "huggingface") -> None:
        self.command = [
            sys.executable, str(Path(__file__).with_name("publish_once.py")), name, hub.url, str(release), REPO
        ]  # fmt: skip
        self.environment = os.environ | {
            "HF_TOKEN": TOKEN,
            "MODELSCOPE_API_TOKEN": modelscope_standin.TOKEN,
            "MODELSCOPE_HOME": str(home / "modelscope"),
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.log = home / "log.txt"
        home.mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def run(self) -> int:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
            return self.process.wait(timeout=60)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HuggingFaceStandIn]:
    server = HuggingFaceStandIn(tmp_path / "cas", multipart=True)
    yield server
    server.close()


def killed_at(steps: Iterable[str], also_fast: str) -> list[Any]:
    """Each step not done (drop), and done while nobody heard of it (call), which all but one leave to the slow set."""
    return [(step, "drop") for step in steps] + [
        pytest.param(step, "call", marks=[] if step == also_fast else pytest.mark.slow) for step in steps
    ]


def assert_no_secret(folder: Path) -> None:
    """In no file below, whatever it is."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"PLANTED" not in path.read_bytes(), f"a planted secret is in {path}"


def test_the_secret_check_sees_a_secret(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(f"Authorization: Bearer {TOKEN}")
    with pytest.raises(AssertionError, match="planted secret"):
        assert_no_secret(tmp_path)


@pytest.mark.parametrize(("step", "kind"), killed_at(STEPS, "commit to main"))
def test_killed_in_a_step(hub: HuggingFaceStandIn, release: Path, tmp_path: Path, step: str, kind: str) -> None:
    runner = Runner(hub, release, tmp_path / "home", xet=False)
    hub.faults = [Fault(STEPS[step], kind, hook=runner.kill)]
    assert runner.run() == -signal.SIGKILL
    # Main is empty, or whole.
    if REPO in hub.repositories:
        held = hub.files(REPO, "main")
        assert not held or len(held) == len(publication_of(release).files)
    assert runner.run() == 0, runner.log.read_text()
    assert_published(hub, publication_of(release))
    assert_no_secret(tmp_path)


def test_finished_blobs_are_not_sent_again(hub: HuggingFaceStandIn, release: Path, tmp_path: Path) -> None:
    runner = Runner(hub, release, tmp_path / "home", xet=False)
    hub.faults = [Fault(STEPS["commit to main"], "call", hook=runner.kill)]
    assert runner.run() == -signal.SIGKILL
    shards = sum(path.stat().st_size for path in release.glob("*.safetensors"))
    assert hub.received("PUT .*") == shards
    assert runner.run() == 0
    assert hub.received("PUT .*") == shards


@pytest.mark.parametrize("step", [None, "commit to the branch", "commit to main"])
def test_with_xet(hub: HuggingFaceStandIn, release: Path, tmp_path: Path, step: str | None) -> None:
    runner = Runner(hub, release, tmp_path / "home", xet=True)
    if step is not None:
        hub.faults = [Fault(STEPS[step], "call", hook=runner.kill)]
        assert runner.run() == -signal.SIGKILL
    assert runner.run() == 0, runner.log.read_text()
    assert_published(hub, publication_of(release))
    assert hub.xet
    assert hub.count("PUT .*") == 0
    stored = sum(path.stat().st_size for path in hub.cas.rglob("*") if path.is_file())
    shards = sum(path.stat().st_size for path in release.glob("*.safetensors"))
    # Random bytes, stored once even when sent twice, and the store's own index of a megabyte.
    assert shards < stored < shards + (2 << 20) < 2 * shards + (1 << 20)
    assert_no_secret(tmp_path)


def test_with_xet_a_changed_shard_is_found(hub: HuggingFaceStandIn, release: Path, tmp_path: Path) -> None:
    path = release / "model1-mp8.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    runner = Runner(hub, release, tmp_path / "home", xet=True)
    assert runner.run() == 1
    assert "model1-mp8.safetensors: not what the manifest says" in runner.log.read_text()
    assert hub.files(REPO, "main") == {}
    assert len(hub.repositories[REPO].history) == 1


def test_presigned_addresses_are_not_logged(hub: HuggingFaceStandIn, release: Path, tmp_path: Path) -> None:
    runner = Runner(hub, release, tmp_path / "home", xet=False)
    hub.faults = [Fault("PUT /blob/.*", "status", 2, 500)]
    assert runner.run() == 0
    assert "500" in runner.log.read_text()
    assert_no_secret(tmp_path)


MODELSCOPE_STEPS = {
    "create": "POST /api/v1/models",
    "send": "PUT /blob/.*",
    "commit": f"POST {test_modelscope.LFS}/commit/.*",
    "tag": f"POST {test_modelscope.OLD}/repo/tag",
}


@pytest.mark.parametrize(("step", "kind"), killed_at(MODELSCOPE_STEPS, "commit"))
def test_modelscope_killed_in_a_step(release: Path, tmp_path: Path, step: str, kind: str) -> None:
    hub = modelscope_standin.ModelScopeStandIn()
    try:
        runner = Runner(hub, release, tmp_path / "home", xet=False, name="modelscope")
        hub.faults = [Fault(MODELSCOPE_STEPS[step], kind, hook=runner.kill)]
        assert runner.run() == -signal.SIGKILL
        assert runner.run() == 0, runner.log.read_text()
    finally:
        hub.close()
    test_modelscope.assert_published(hub, test_modelscope.publication_of(release))
    shards = sum(path.stat().st_size for path in release.glob("*.safetensors"))
    largest = max(path.stat().st_size for path in release.glob("*.safetensors"))
    assert hub.received("PUT .*") <= shards + largest  # finished blobs are not sent again
    assert_no_secret(tmp_path)

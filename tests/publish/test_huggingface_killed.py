"""kill -9 at every step of a publication, Xet on and off; the same command then ends it. No secret is left anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_standin import TOKEN, HuggingFaceStandIn
from loopback import Fault
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

    def __init__(self, hub: HuggingFaceStandIn, release: Path, home: Path, xet: bool) -> None:
        self.command = [
            sys.executable, str(Path(__file__).with_name("publish_once.py")), "huggingface", hub.url, str(release), REPO
        ]  # fmt: skip
        self.environment = os.environ | {
            "HF_TOKEN": TOKEN,
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


def assert_no_secret(folder: Path) -> None:
    """In no file below, whatever it is."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"PLANTED" not in path.read_bytes(), f"a planted secret is in {path}"


def test_the_secret_check_sees_a_secret(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(f"Authorization: Bearer {TOKEN}")
    with pytest.raises(AssertionError, match="planted secret"):
        assert_no_secret(tmp_path)


@pytest.mark.parametrize("kind", ["drop", "call"])  # the step was not done, or done and nobody heard of it
@pytest.mark.parametrize("step", STEPS)
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

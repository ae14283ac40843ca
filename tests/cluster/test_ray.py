"""`convert --executor ray` on real clusters: workers and nodes are killed, the bytes are those of one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ray_nodes import TwoNodes, until

from flagrelease.cli import main
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.shard.index import open_checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

Start = Callable[..., subprocess.Popen[str]]
Clusters = Callable[[int, int], TwoNodes]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    write_checkpoint(folder, tiny_config())
    return folder


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    assert main(["convert", str(checkpoint), "--target", "bf16:mp8", "--target", "fp8:hf", "--out", str(out)]) == 0
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def words(checkpoint: Path, out: Path, cluster: TwoNodes, *more: object) -> list[object]:
    targets = ["--target", "bf16:mp8", "--target", "fp8:hf"]
    return ["convert", checkpoint, *targets, "--out", out, "--executor", "ray", "--cluster", cluster.address, *more]


def workers(out: Path) -> dict[str, int]:
    """Part -> process of the job that works at it."""
    found = {}
    for path in out.glob("parts/*-of-*/progress"):
        part = path.parent
        if not (part / "done.json").exists():
            found[part.name] = int(path.read_text().split()[2])
    return found


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_and_a_node_are_lost(
    cluster: Clusters, flagrelease: Start, checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    nodes, out = cluster(2, 2), tmp_path / "out"
    command = words(checkpoint, out, nodes, "--parts", 4)
    running = flagrelease(*command)
    until(lambda: workers(out) or running.poll() is not None)
    killed = next(iter(workers(out).values()))
    os.kill(killed, signal.SIGKILL)
    second = flagrelease(*command)
    _, errors = second.communicate(timeout=240)
    assert second.returncode == 4, errors
    assert f"{out}: in use by another flagrelease process (process {running.pid} on " in errors
    until(lambda: set(workers(out).values()) - {killed} or running.poll() is not None)
    nodes.do("lose")
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 0, errors
    assert errors.count("its worker was lost") >= 1
    assert "WorkerCrashedError" in errors
    assert contents(out) == alone
    again = flagrelease(*command)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors


def test_ctrl_c_ends_all_jobs_and_the_same_command_resumes(
    cluster: Clusters, flagrelease: Start, checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    nodes, out = cluster(2, 2), tmp_path / "out"
    command = words(checkpoint, out, nodes, "--json")
    running = flagrelease(*command)
    until(lambda: len(workers(out)) == 2 or running.poll() is not None)
    jobs = workers(out)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 130, errors
    assert "interrupted. Run the same command again to resume" in errors
    assert "Traceback" not in errors
    assert not list(out.glob("*/manifest.json"))
    assert len(jobs) == 2
    again = flagrelease(*command)
    said, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert set(json.loads(said)["releases"]) == {"bf16-mp8", "fp8-hf"}
    assert contents(out) == alone


def test_a_node_that_is_gone_for_good_is_not_waited_for(
    cluster: Clusters, flagrelease: Start, checkpoint: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """A task that only the second node could run waits for ever in Ray."""
    nodes, out = cluster(1, 3), tmp_path / "out"
    command = words(checkpoint, out, nodes, "--workers", 3, "--parts", 2)
    running = flagrelease(*command)
    until(lambda: workers(out) or running.poll() is not None)
    nodes.do("lose")
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 4, errors
    assert "no node of the cluster has the 3 CPUs" in errors
    nodes.do("gain 3")
    again = flagrelease(*command)
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert contents(out) == alone


def test_what_the_data_hold_is_refused_as_on_one_machine(
    cluster: Clusters, flagrelease: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    write_checkpoint(damaged, tiny_config())
    meta = next(one for name, one in open_checkpoint(damaged).tensors.items() if name.endswith("experts.7.w2.scale"))
    with Path(meta.file).open("r+b") as file:
        file.seek(meta.begin)
        file.write(np.full(meta.nbytes, 255, dtype=np.uint8).tobytes())  # E8M0's NaN
    targets = ["--target", "bf16:mp8", "--target", "fp8:hf"]
    assert main(["convert", str(damaged), *targets, "--out", str(tmp_path / "one")]) == 3
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flagrelease: checkpoint:")]
    running = flagrelease(*words(damaged, tmp_path / "out", cluster(2, 2)))
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 3, errors
    assert f"{said} (part " in errors


def test_an_address_without_a_cluster_is_refused(flagrelease: Start, checkpoint: Path, tmp_path: Path) -> None:
    targets = ["--target", "bf16:mp8", "--out", tmp_path / "out"]
    running = flagrelease("convert", checkpoint, *targets, "--executor", "ray", "--cluster", "127.0.0.1:1")
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 4, errors
    assert "Ray cluster 127.0.0.1:1: cannot be used" in errors
    assert "Traceback" not in errors

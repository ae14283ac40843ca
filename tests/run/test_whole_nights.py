"""Whole nights over the small model, as processes: every chip, killed at random moments, one chip bad, and again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_standin
import modelscope_standin
import pytest
import yaml
from ci_files import Step, github_steps
from huggingface_standin import HuggingFaceStandIn
from modelscope_standin import ModelScopeStandIn
from night_runs import SOURCE

from flagrelease.records.night import read_night
from flagrelease.records.recipe import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
CHIPS, RELEASES = 8, len(read_recipe(ROOT / "recipes" / "tiny.yaml").chosen())


def every_chip(folder: Path) -> Path:
    """recipes/tiny.yaml, which has what the recipe of Flash has for each chip; the stages that read files."""
    document = yaml.safe_load((ROOT / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
    document["source"]["path"] = str(SOURCE)
    document["validation"] = {"stages": ["integrity", "weights"]}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@dataclass
class Nights:
    """Runs `flagrelease run` in processes of their own, all with one home and one folder of output."""

    folder: Path
    recipe: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flagrelease", "run", str(self.recipe), "--out", str(self.out), "--json"]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "HOME": str(self.folder), "HF_HOME": str(self.folder / "hf"), "MODELSCOPE_HOME": str(self.folder / "ms"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9", "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9",
        }  # fmt: skip
        with (self.folder / "talk").open("ab") as talk, (self.folder / "said.json").open("wb") as said:
            return subprocess.Popen(
                [*command, *map(str, words)], env=environment | self.environment, stdout=said, stderr=talk
            )

    def run(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        found = self.start(*words).wait()
        assert found == code, (self.folder / "talk").read_text(encoding="utf-8")[-3000:]
        document: dict[str, Any] = json.loads((self.folder / "said.json").read_bytes())
        return document

    def kill_at_random(self, seed: int, times: int, far: Callable[[], int], most: int, *words: str | Path) -> int:
        """kill -9, so often, at moments that the seed gives; returns how many runs were killed before their end.

        A moment is a number of what `far` counts, such as files that are there or requests that came: it is not a time,
        so a busy machine changes nothing. At most `most` are drawn.
        """
        generator, killed = random.Random(seed), 0
        for _ in range(times):
            process, there = self.start(*words), far()
            moment = generator.randint(there, max(there, most))
            while process.poll() is None and far() <= moment:
                time.sleep(0.005)
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        return killed

    def entries(self) -> int:
        """Files and folders below the folder of output and beside it; what vanishes while they are counted is none."""
        return sum(len(folders) + len(files) for _, folders, files in os.walk(self.folder))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """A night that nothing disturbed: what all others must end with."""
    folder = tmp_path_factory.mktemp("sound")
    nights = Nights(folder, every_chip(folder))
    document = nights.run("--publish", folder / "mirror", "--yes")
    assert (
        document["summary"]
        == f"{RELEASES} releases of {CHIPS} chips are published; there was something to do for {RELEASES} of them"
    )
    return nights


def test_a_second_night_does_nothing(sound: Nights) -> None:
    """Also nothing that takes long: no file of tensors is read, which the times of reading show where they are kept."""
    before = {path: path.stat().st_mtime_ns for path in sound.folder.rglob("*") if path.is_file()}
    document = sound.run("--publish", sound.folder / "mirror", "--yes")
    assert document["verdict"] == "nothing-to-do"
    assert document["summary"] == f"nothing to do: {RELEASES} releases of {CHIPS} chips are published"
    night = read_night(Path(document["night"]))
    assert {step.kept for chip in night.chips for step in chip.steps.values()} == {True}
    changed = {path for path, time_ in before.items() if path.stat().st_mtime_ns != time_}
    assert {path.name for path in changed} <= {"lock", "talk", "said.json"}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_moments_it_ends_the_same(sound: Nights, tmp_path: Path, seed: int) -> None:
    nights = Nights(tmp_path, every_chip(tmp_path))
    words = ("--publish", tmp_path / "mirror", "--yes")
    assert nights.kill_at_random(seed, 6, nights.entries, sound.entries(), *words)
    nights.run(*words)
    assert digests(tmp_path / "mirror") == digests(sound.folder / "mirror")
    for report in sorted((sound.out / "validation").glob("*/report.json")):
        assert (nights.out / report.relative_to(sound.out)).read_bytes() == report.read_bytes()
    assert not [
        path.name for path in tmp_path.rglob(".*") if path.name.endswith((".removed", ".unfinished", ".replaced"))
    ]
    assert nights.run(*words)["verdict"] == "nothing-to-do"
    kept = [read_night(path) for path in (nights.out / "nights").iterdir() if path.stat().st_size]
    assert any(night.ended is None for night in kept), "a run that was killed has left its record"


def test_one_bad_chip_keeps_no_other_from_being_published(sound: Nights, tmp_path: Path) -> None:
    """A byte of ascend's release is wrong before it is proved, and for hygon the rules of conversion cannot be kept."""
    nights = Nights(tmp_path, every_chip(tmp_path))
    nights.run("--until", "convert")
    victim = sorted((nights.out / "w8a8-ascend-hf").glob("*.safetensors"))[0]
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.rmtree(nights.out / "fp8-channel-hf")
    (nights.out / "fp8-channel-hf").mkdir()
    (nights.out / "fp8-channel-hf" / "somebody.txt").write_text("else's")
    words = ("--publish", tmp_path / "mirror", "--yes")
    document = nights.run(*words, "--junit", tmp_path / "junit.xml", code=5)
    status = {(one["chip"], Path(one["release"]).name): one["steps"] for one in document["chips"]}
    assert status["ascend", "w8a8-ascend-hf"]["verify"]["status"] == "failed"
    assert status["hygon", "fp8-channel-hf"]["convert"]["status"] == "failed"
    published = [steps for steps in status.values() if steps.get("publish", {}).get("status") == "done"]
    assert len(published) == RELEASES - 2
    assert len(list((tmp_path / "mirror").iterdir())) == RELEASES - 2
    assert document["summary"].startswith(
        f"{RELEASES - 2} of {RELEASES} releases of {CHIPS} chips are published; 2 failed"
    )
    again = nights.run(*words, code=5)
    assert {step["why"] for one in again["chips"] for step in one["steps"].values() if step["status"] == "done"} == {""}
    victim.write_bytes(content)
    shutil.rmtree(nights.out / "fp8-channel-hf")
    nights.run(*words)
    assert digests(tmp_path / "mirror") == digests(sound.folder / "mirror")


@pytest.fixture(params=["hf", "modelscope"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """A stand-in, and how a process is told of it."""
    server: Any = HuggingFaceStandIn(tmp_path / "cas") if request.param == "hf" else ModelScopeStandIn()
    variables = {
        "HF_ENDPOINT": server.url, "MODELSCOPE_ENDPOINT": server.url,
        "HF_TOKEN": huggingface_standin.TOKEN, "MODELSCOPE_API_TOKEN": modelscope_standin.TOKEN,
    }  # fmt: skip
    yield request.param, server, variables
    server.close()


def test_to_a_hub_and_again_and_after_kills(
    sound: Nights, tmp_path: Path, hub: tuple[str, Any, dict[str, str]]
) -> None:
    name, server, variables = hub
    nights = Nights(tmp_path, every_chip(tmp_path), variables)
    shutil.copytree(sound.out, nights.out)
    words = ("--publish", name, "--yes")
    assert nights.kill_at_random(7, 3, lambda: len(server.seen), 12 * RELEASES, *words)
    nights.run(*words)
    expected = {one.repo for one in read_recipe(nights.recipe).chosen()}
    assert set(server.repositories) == expected
    sent = len(server.seen)
    document = nights.run(*words)
    assert document["summary"] == f"nothing to do: {RELEASES} releases of {CHIPS} chips are published"
    assert all(seen.method in ("GET", "HEAD") for seen in server.seen[sent:])
    main = "main" if name == "hf" else "master"
    for repo in expected:
        files = server.files(repo, main)
        manifests = list(nights.out.glob("*/manifest.json"))
        (found,) = [path for path in manifests if sha256(path) == files["manifest.json"]]
        held = json.loads(found.read_bytes())["files"]
        assert all(files[one["path"]] == one["sha256"] for one in held if one["path"] != "README.md")
    spoiled = sorted(expected)[0]  # somebody commits to the default branch
    spoil(server, spoiled, main)
    again = nights.run(*words)
    done = [one["repository"] for one in again["chips"] if one["steps"]["publish"]["why"]]
    assert done == [spoiled]
    assert "holds something else" in next(
        one["steps"]["publish"]["why"] for one in again["chips"] if one["repository"] == spoiled
    )


def spoil(server: Any, repo: str, branch: str) -> None:
    """The card goes from the default branch; ModelScope's stand-in keeps that as a dictionary."""
    held = server.repositories[repo]
    tree = dict(held.tree(branch))
    del tree["README.md"]
    if isinstance(server, ModelScopeStandIn):
        held.master = tree
    else:
        held.commit(branch, tree)


def test_the_workflow_step_by_step(sound: Nights, tmp_path: Path) -> None:
    """No runner of GitHub's is here, so the shell runs what its steps say; installing and doctor are left out."""
    nights = Nights(tmp_path, every_chip(tmp_path))
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "flagrelease"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flagrelease "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    key = subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"], capture_output=True, check=True
    )
    values = {
        "RECIPE": str(nights.recipe), "CHECKPOINT": str(SOURCE), "OUT": str(nights.out), "RUNNER_TEMP": str(tmp_path),
        "TARGET": str(tmp_path / "mirror"), "NOTIFY": "true {verdict}", "SIGNING_KEY": key.stdout.decode(),
        "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for _night in range(2):
        for step in github_steps():
            if not step.installs and "doctor" not in step.script:
                in_a_shell(step, values, tmp_path)
    assert len(list((tmp_path / "junit").glob("*.xml"))) == 2 + CHIPS
    assert len(list((tmp_path / "mirror").iterdir())) == RELEASES
    assert (tmp_path / "morning" / "index.html").is_file()
    assert not (tmp_path / "signing.pem").exists()
    assert all((folder / "model.sig").is_file() for folder in (tmp_path / "mirror").iterdir())
    verdicts = [read_night(path).verdict for path in sorted((nights.out / "nights").iterdir())]
    assert verdicts[len(verdicts) // 2 :] == ["nothing-to-do"] * (2 + CHIPS)


def in_a_shell(step: Step, values: Mapping[str, str], folder: Path) -> None:
    given = {name: value for name, value in step.env.items() if name not in values and "${{" not in value}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step.script], cwd=folder, env=os.environ | values | given,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{step.job}: {step.name}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

"""`flagrelease scripts`: run files for a release that stays where it is, run with programs that tell their words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from publish_release import Converted, write_release
from stack_records import records_of_format

from flagrelease.cli import main
from flagrelease.errors import UsageError
from flagrelease.publish.scripts import write_scripts
from flagrelease.records.manifest import Dtype


def run(script: Path, programs: Path, **variables: str) -> list[str]:
    """The words with which the script calls torchrun or vllm."""
    programs.mkdir(exist_ok=True)
    for name in ("torchrun", "vllm"):
        (programs / name).write_text('#!/bin/bash\nprintf "%s\\n" "${0##*/}" "$@"\n')
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"} | variables
    done = subprocess.run(["bash", script], env=environment, cwd="/", capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_an_mp_release_is_served_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release, out = write_release(tmp_path / "a release" / "fp8-mp8"), tmp_path / "run"
    before = sorted(path.name for path in release.iterdir())
    assert main(["scripts", str(release), "--chip", "mthreads", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in told["files"]] == sorted(path.name for path in out.iterdir())
    assert sorted(path.name for path in release.iterdir()) == before, "nothing is written there"
    words = run(out / "run_mp8.sh", tmp_path / "bin")
    assert words[:6] == ["torchrun", "--nproc-per-node", "8", "-m", "flagrelease", "serve"]
    assert words[6] == str(release)
    assert run(out / "run_mp8.sh", tmp_path / "bin", RELEASE="/release")[6] == "/release"
    service = yaml.safe_load((out / "compose.yaml").read_text())["services"]["model"]
    assert service["command"] == ["bash", "/scripts/run_mp8.sh"]
    assert {".:/scripts:ro", f"{release}:/release:ro"} <= set(service["volumes"])
    assert "RELEASE=/release" in service["environment"]


def test_the_stack_of_the_recipe_gets_a_script(converted: Converted, tmp_path: Path) -> None:
    release = converted.release.parent / "fp8-hf"
    assert main(["scripts", str(release), "--chip", "nvidia", "--out", str(tmp_path / "run")]) == 0
    words = run(tmp_path / "run" / "serve_vllm.sh", tmp_path / "bin")
    assert words[:5] == ["vllm", "serve", str(release), "--served-model-name", "flagrelease-tiny-v4"]
    assert "--tokenizer-mode=deepseek_v4" in words


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        ("vllm-plugin-fl", 'VLLM_PLUGINS=fl vllm serve "$release"'),
        ("sglang", 'sglang.launch_server --model-path "$release"'),
    ],
)
def test_another_stack_may_be_named(converted: Converted, stack: str, said: str, tmp_path: Path) -> None:
    words = ["scripts", str(converted.release.parent / "fp8-hf"), "--chip", "nvidia", "--stack", stack]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert said in (tmp_path / "run" / f"serve_{stack}.sh").read_text()


@pytest.mark.parametrize(
    ("release", "words", "said"),
    [
        ("fp8-hf", ["--stack", "vllm-ascend"], "does not serve nvidia; those that do: vllm, sglang"),
        ("fp8-mp8", ["--stack", "vllm"], "does not read releases of layout mp8"),
        ("fp8-hf", ["--chip", "abacus"], "chip 'abacus' is not in the table"),
        ("fp8-hf", ["--out", "{release}/run"], "is in the release"),
    ],
)
def test_what_is_refused(
    converted: Converted, release: str, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = converted.release.parent / release
    filled = [word.format(release=folder) for word in words]
    assert main(["scripts", str(folder), "--chip", "nvidia", "--out", str(tmp_path / "run"), *filled]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("form", "said"),
    [("fp8-e8m0", "would load it without an error and answer nonsense"), ("w8a8-ascend", "refuses it: ")],
)
def test_no_script_starts_a_stack_that_refuses_or_misreads_the_release(
    form: Dtype, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = records_of_format(tmp_path / "release", "nvidia", form)
    monkeypatch.setattr("flagrelease.publish.scripts.read_records", lambda *_, **__: records)
    with pytest.raises(UsageError, match=f"--stack vllm: {said}"):
        write_scripts(records.release, records.chip, "vllm", tmp_path / "run", None)
    assert not (tmp_path / "run").exists()

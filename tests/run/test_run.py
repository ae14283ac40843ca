"""`flagrelease run`: stages of several chips, what they share, going on, and what one chip cannot have."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from dataset_standin import dataset_hub
from scripted_exam import choice_rules

from flagrelease import cli
from flagrelease.chips.table import get_chip
from flagrelease.cli import main
from flagrelease.convert.running.journal import Journal
from flagrelease.errors import NetworkError
from flagrelease.publish.records import default_report
from flagrelease.ranks.status import Status
from flagrelease.run import on_ranks, publication
from flagrelease.validate.exams.hub import download
from flagrelease.validate.stages import asking, file_stages
from flagrelease.validate.stages.request import default_out

CHIPS = {"ascend": ("bf16", "hf"), "mthreads": ("fp8", "hf"), "nvidia": ("fp8", "hf")}


SOURCE = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"


def write_recipe(folder: Path, **validation: Any) -> Path:
    """Files and weights are all that a pass needs here, so no model is run."""
    document = {
        "schema_version": 1,
        "model": "small-v4",
        "source": {"repo": "someone/small-v4", "revision": "r1", "license": "MIT", "path": str(SOURCE)},
        "releases": {chip: {"dtype": dtype, "layout": layout} for chip, (dtype, layout) in CHIPS.items()},
        "validation": {"stages": ["integrity", "weights"]} | validation,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


Run = Callable[..., dict[str, dict[str, str]]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the recipe; returns chip -> stage -> status, keeps the details in `details`, in `why` why what was done."""
    recipe = write_recipe(tmp_path)

    def call(*words: str | Path, code: int = 0) -> dict[str, dict[str, str]]:
        capsys.readouterr()
        assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--json", *map(str, words)]) == code
        document = json.loads(capsys.readouterr().out)
        chips, call.summary = document["chips"], document["summary"]  # type: ignore[attr-defined]
        call.details = {  # type: ignore[attr-defined]
            chip["chip"]: {stage: step["detail"] for stage, step in chip["steps"].items()} for chip in chips
        }
        call.why = {  # type: ignore[attr-defined]
            chip["chip"]: done for chip in chips
            if (done := {stage: step["why"] for stage, step in chip["steps"].items() if step["why"]})
        }  # fmt: skip
        return {chip["chip"]: {stage: step["status"] for stage, step in chip["steps"].items()} for chip in chips}

    return call


def snapshot(folder: Path) -> dict[str, int]:
    """When each file was written, but for locks, which name the process that had them last, and records of nights."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path): path.stat().st_mtime_ns for path in files if path.name != "lock" and path.parent.name != "nights"
    }


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Releases whose weights were read against the source."""
    seen: list[str] = []
    original = file_stages.check_weights

    def watch(release: Path, *arguments: Any) -> Any:
        seen.append(release.name)
        return original(release, *arguments)

    monkeypatch.setattr(file_stages, "check_weights", watch)
    return seen


def test_the_whole_way_into_a_folder(run: Run, tmp_path: Path, proved: list[str]) -> None:
    mirror = tmp_path / "mirror"
    every = {"convert": "done", "verify": "done", "validate": "done"}
    assert run("--publish", mirror) == {chip: every | {"publish": "planned"} for chip in CHIPS}
    assert not mirror.exists()
    assert run("--publish", mirror, "--yes") == {chip: every | {"publish": "done"} for chip in CHIPS}
    names = {f"small-v4-{chip}-FlagOS" for chip in CHIPS}
    assert {path.name for path in mirror.iterdir()} == names
    assert main(["verify", str(mirror / "small-v4-mthreads-FlagOS"), "--source", str(SOURCE)]) == 0
    for name in names:
        assert json.loads((mirror / name / "report.json").read_bytes())["chip"] in name
    # Two chips get the same release: it is proved once, and both reports say what was shown.
    assert sorted(proved[:2]) == ["bf16-hf", "fp8-hf"]
    assert proved[2:] == []
    reports = [json.loads((mirror / name / "report.json").read_bytes()) for name in sorted(names)]
    assert reports[1]["stages"] == reports[2]["stages"]
    assert reports[1]["manifest_sha256"] == reports[2]["manifest_sha256"] != reports[0]["manifest_sha256"]


def test_again_is_nothing(run: Run, tmp_path: Path, proved: list[str]) -> None:
    first = run("--publish", tmp_path / "mirror", "--yes")
    before = snapshot(tmp_path)
    assert run("--publish", tmp_path / "mirror", "--yes") == first
    assert snapshot(tmp_path) == before
    assert (len(proved), run.why) == (2, {})  # type: ignore[attr-defined]
    assert run.summary == "nothing to do: 3 releases of 3 chips are published"  # type: ignore[attr-defined]


def test_a_manifest_is_read_by_the_conversion_and_by_publishing_and_by_nobody_between(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification and validation read it ten times for each chip."""
    read: list[Path] = []
    original = Path.read_bytes

    def count(path: Path) -> bytes:
        if path.name == "manifest.json":
            read.append(path)
        return original(path)

    run("--until", "convert")
    monkeypatch.setattr(Path, "read_bytes", count)
    run("--until", "convert")
    converted = sorted(read)
    read.clear()
    run("--until", "validate")
    assert sorted(read) == converted
    assert {path.parent.name for path in read} == {"bf16-hf", "fp8-hf"}


def test_until_and_chips(run: Run, tmp_path: Path) -> None:
    assert run("--until", "convert", "--chip", "mthreads") == {"mthreads": {"convert": "done"}}
    assert not (tmp_path / "out" / "bf16-hf").exists()
    assert run("--until", "verify", "--chip", "mthreads") == {"mthreads": {"convert": "done", "verify": "done"}}
    assert run("--chip", "ascend")["ascend"]["validate"] == "done"


def test_what_stopped_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proved: list[str]) -> None:
    """Publishing breaks at the second chip: the others are published, and the next run does what is left."""
    original = publication.publish
    broken: list[str] = []

    def fail_once(release: Path, chip: str, *arguments: Any, **options: Any) -> Any:
        if chip == "mthreads" and not broken:
            broken.append(chip)
            raise NetworkError("the hub went away. Run the same command again to resume")
        return original(release, chip, *arguments, **options)

    monkeypatch.setattr(publication, "publish", fail_once)
    found = run("--publish", tmp_path / "mirror", "--yes", code=6)
    assert [steps["publish"] for steps in found.values()] == ["done", "failed", "done"]
    assert "the hub went away" in run.details["mthreads"]["publish"]  # type: ignore[attr-defined]
    found = run("--publish", tmp_path / "mirror", "--yes")
    assert {steps["publish"] for steps in found.values()} == {"done"}
    assert len(proved) == 2


def test_an_interruption_is_gone_on_from(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = file_stages.check_weights

    def interrupt(release: Path, *arguments: Any) -> Any:
        if release.name == "fp8-hf":
            raise KeyboardInterrupt
        return original(release, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(file_stages, "check_weights", interrupt)
        arguments = ["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
        assert main(arguments) == 130
    assert {steps["validate"] for steps in run().values()} == {"done"}


def published(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "seen",
    [
        "validation/*/state/integrity.json",
        pytest.param("bf16-hf/manifest.json", marks=pytest.mark.slow),
        pytest.param("../mirror/*/report.json", marks=pytest.mark.slow),
    ],
)
def test_killed_it_goes_on_and_ends_the_same(run: Run, tmp_path: Path, seen: str) -> None:
    """kill -9 when a file appears: in the verification, the conversion, between two publications."""
    words = ["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "killed" / "out")]
    command = [sys.executable, "-m", "flagrelease", *words, "--publish", str(tmp_path / "killed" / "mirror"), "--yes"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(tmp_path.joinpath("killed", "out").glob(seen)):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main(command[3:]) == 0
    run("--publish", tmp_path / "mirror", "--yes")
    held = published(tmp_path / "killed" / "mirror")
    assert held == published(tmp_path / "mirror")
    assert len({name.split("/")[0] for name in held}) == len(CHIPS)


def test_killed_between_a_manifest_and_the_end_of_its_work_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release is complete, so no conversion looked at it again: every later run found files beside its manifest."""
    with monkeypatch.context() as killed:
        killed.setattr("flagrelease.convert.running.journal.Journal.remove", Journal.close)
        run("--until", "convert")
    assert (tmp_path / "out" / "bf16-hf" / ".flagrelease" / "begun.json").is_file()
    assert run("--until", "verify") == {chip: {"convert": "done", "verify": "done"} for chip in CHIPS}
    assert not (tmp_path / "out" / "bf16-hf" / ".flagrelease").exists()


def test_a_release_that_is_wrong_stops_its_chips_and_no_others(run: Run, tmp_path: Path) -> None:
    run("--until", "convert")
    victim = sorted((tmp_path / "out" / "fp8-hf").glob("*.safetensors"))[0]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    found = run("--publish", tmp_path / "mirror", "--yes", code=5)
    assert found["ascend"]["publish"] == "done"
    for chip in ("mthreads", "nvidia"):
        assert found[chip] == {"convert": "done", "verify": "failed"}
        assert victim.name in run.details[chip]["verify"]  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "mirror").iterdir()] == ["small-v4-ascend-FlagOS"]


@pytest.mark.parametrize(("hidden", "stage", "said"), [(False, "verify", "was written since it was proved"),
                                                       (True, "publish", "not what the manifest says")])  # fmt: skip
def test_a_changed_byte_after_the_report_is_not_published(
    run: Run, tmp_path: Path, hidden: bool, stage: str, said: str
) -> None:
    """A file that was written since is hashed again; if its time hides that, publishing still reads every byte."""
    run("--chip", "ascend")
    victim = sorted((tmp_path / "out" / "bf16-hf").glob("*.safetensors"))[0]
    status, content = victim.stat(), bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    if hidden:
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = run("--publish", tmp_path / "mirror", "--yes", "--chip", "ascend", code=5)
    assert found["ascend"][stage] == "failed"
    assert said in run.details["ascend"][stage]  # type: ignore[attr-defined]
    assert not (tmp_path / "mirror" / "small-v4-ascend-FlagOS").exists()


def test_a_file_that_was_written_again_with_the_same_bytes_is_hashed_and_nothing_else(
    run: Run, tmp_path: Path, proved: list[str]
) -> None:
    run("--chip", "ascend")
    report = tmp_path / "out" / "validation" / "bf16-hf-ascend" / "report.json"
    before = report.read_bytes()
    sorted((tmp_path / "out" / "bf16-hf").glob("*.safetensors"))[0].touch()
    assert run("--chip", "ascend")["ascend"]["validate"] == "done"
    assert run.why == {"ascend": {"verify": run.why["ascend"]["verify"]}}  # type: ignore[attr-defined]
    assert "was written since it was proved" in run.why["ascend"]["verify"]  # type: ignore[attr-defined]
    assert (len(proved), report.read_bytes()) == (1, before)


def test_other_rules_are_not_judged_by_an_old_report(run: Run, tmp_path: Path, proved: list[str]) -> None:
    """The old report goes into the history, the weights are not read again: no rule is about them."""
    run()
    before = published(tmp_path / "out" / "validation")
    write_recipe(tmp_path, stages=["integrity"])
    found = run()
    assert {steps["validate"] for steps in found.values()} == {"done"}
    assert len(proved) == 2
    kept = sorted((tmp_path / "out" / "history").iterdir())
    assert [path.name for path in kept] == ["bf16-hf-ascend", "fp8-hf-mthreads", "fp8-hf-nvidia"]
    for folder in kept:
        (old,) = folder.iterdir()
        digest = before[f"{folder.name}/report.json"]
        assert old.name.endswith(f"Z-{digest[:12]}")
        assert hashlib.sha256((old / "report.json").read_bytes()).hexdigest() == digest


def test_the_table(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["chip", "release", "convert", "verify", "validate", "publish"]
    assert lines[1].split() == ["ascend", "bf16-hf", "done", "done", "done", "-"]
    assert "ascend bf16-hf: validate: " in "\n".join(lines)
    assert str(tmp_path / "out" / "validation" / "bf16-hf-ascend" / "report.html") in "\n".join(lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--until", "publish"], "needs --publish"),
        (["--until", "verify", "--publish", "hf"], "contradicts --until verify"),
        (["--yes"], "belong to --publish"),
        (["--chip", "iluvatar"], "iluvatar"),
        (["--data", "x"], "NAME=FILE"),
    ],
)
def test_bad_usage(tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--documents", "missing.jsonl"], "missing.jsonl"),
        (["--baseline", "missing"], "no baseline"),
        (["--data", f"gpqa={__file__}"], "the rules have no such benchmark"),
        (["--publish", "mirror", "--signing-key", "missing.pem"], "missing.pem"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_converting(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of these was found after the conversion."""
    recipe = write_recipe(tmp_path, stages=["integrity", "weights", "behaviour"], benchmarks={}, device="any")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [
        ("npu", 4, "ascend cannot be validated with --device npu: device 'npu' needs the module torch_npu"),
        ("cpu", 2, "the rules count only what ascend's own kind of device (npu) computed"),
    ],
)
def test_a_device_that_cannot_validate_is_refused_before_converting(
    tmp_path: Path, device: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The conversion was done first; then a device that is not there was no verdict, and the CPU was refused."""
    recipe = write_recipe(tmp_path, stages=["integrity", "weights", "behaviour"], benchmarks={})
    words = ["run", str(recipe), "--out", str(tmp_path / "out"), "--chip", "ascend", "--device", device]
    assert main(words) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--until", "verify"]) == 0, "no model is run until then"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"dataset": "someone/missing"}, 6, "datasets/someone/missing@main: data/0.jsonl: HTTP 404"),
        ({"files": ["data/nameless.jsonl"]}, 2, "data/nameless.jsonl:1: lacks"),
    ],
)
def test_data_of_the_hub_is_looked_at_before_converting(
    tmp_path: Path, change: dict[str, object], code: int, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A dataset that does not exist, or lacks a field, was found after the conversion and the logits."""
    rules = choice_rules(**{"files": ("data/0.jsonl",), "revision": "main"} | change).model_dump(mode="json")
    stages = ["integrity", "weights", "benchmarks"]
    recipe = write_recipe(tmp_path, stages=stages, benchmarks={"choices": rules}, device="any")
    words = ["run", str(recipe), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with dataset_hub() as address:
        monkeypatch.setattr(asking, "download", partial(download, endpoint=address, cache=tmp_path / "cache"))
        assert main(words) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--chip", "iluvatar"], "iluvatar"), (["--checkpoint", "missing"], "missing: no such checkpoint folder")],
)
def test_chips_and_checkpoint_are_looked_at_before_the_hub(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network these ended after half a minute, with an error about the network."""
    rules = choice_rules(files=("data/0.jsonl",), revision="main").model_dump(mode="json")
    recipe = write_recipe(tmp_path, stages=["integrity", "weights", "benchmarks"], benchmarks={"choices": rules})

    def no_network(*_: object, **__: object) -> None:
        raise NetworkError("the hub cannot be reached")

    monkeypatch.setattr(asking, "download", no_network)
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--device", "cpu", *words]) == 2
    assert said in capsys.readouterr().err


def test_ranks_are_started_and_their_own_exit_codes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under torchrun every failure was a code of 1, and the table said 4 to all of them."""
    commands: list[list[str]] = []

    def record(words: list[str], ranks: int, *, to_stderr: bool) -> Status:
        assert (ranks, to_stderr) == (2, True)
        commands.append(words)
        return Status(exit_code=0) if words[0] == "baseline" else Status(exit_code=6, kind="network", message="gone")

    monkeypatch.setattr(on_ranks, "launch", record)
    recipe = write_recipe(tmp_path, stages=["integrity", "weights", "behaviour"], device="any")
    document = yaml.safe_load(recipe.read_text())
    document["releases"] = {"nvidia": {"dtype": "fp8", "layout": "mp2"}}
    recipe.write_text(yaml.safe_dump(document))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"name": "t", "kind": "short", "text": "a short text"}\n')
    words = ["run", str(recipe), "--out", str(tmp_path / "out"), "--device", "cpu", "--documents", str(texts)]
    assert main(words) == 6
    assert "nvidia fp8-mp2: validate: network: gone" in capsys.readouterr().out
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            cli.command_line()([*command, "--help"])
        assert ended.value.code == 0
    assert [command[0] for command in commands] == ["baseline", "validate"]


def test_more_ranks_than_a_node_has_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, stages=["integrity", "weights", "behaviour"])
    document = yaml.safe_load(recipe.read_text())
    document["releases"] = {"ascend": {"dtype": "bf16", "layout": "mp16"}}
    recipe.write_text(yaml.safe_dump(document))
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "behaviour.json").write_text("{}")
    words = ["run", str(recipe), "--out", str(tmp_path / "out"), "--baseline", str(tmp_path / "baseline"), "--json"]
    assert main(words) == 4
    said = capsys.readouterr().out
    assert "takes 16 ranks, a node of ascend has 8 cards" in said
    (command,) = re.findall(r"run `flagrelease ([^`]+)` by torchrun on its nodes", said)
    asked = shlex.split(command)
    place = asked.index("--baseline")
    assert asked[place + 1] == str(tmp_path / "baseline")
    del asked[place : place + 2]  # it is empty here
    # It goes on in the folder, whose weights are proved against the source: 0, and not 4 for another source.
    assert main([*asked, "--until", "weights"]) == 0


def test_publishing_looks_where_validation_writes(tmp_path: Path) -> None:
    release = tmp_path / "fp8-mp8"
    assert default_report(release, "nvidia") == default_out(release, get_chip("nvidia")) / "report.json"


def test_without_the_chips_device_nobody_can_tell_and_nothing_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files and weights are proved here; what needs the chip is left to its machine, whose report is then taken."""
    recipe = write_recipe(tmp_path, stages=["integrity", "weights", "behaviour"])
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "behaviour.json").write_text("{}")
    words = ["run", str(recipe), "--out", str(tmp_path / "out"), "--chip", "ascend", "--json"]
    words += ["--baseline", str(tmp_path / "baseline"), "--publish", str(tmp_path / "mirror"), "--yes"]
    assert main(words) == 7
    shown, talk = capsys.readouterr()
    assert "== ascend: the stages that run the model are left to its own machine (device 'ascend' needs" in talk
    assert talk.index("left to its own machine") < talk.index("convert:")
    (chip,) = json.loads(shown)["chips"]
    assert {stage: step["status"] for stage, step in chip["steps"].items()} == {
        "convert": "done", "verify": "done", "validate": "cannot-tell",
    }  # fmt: skip
    assert "behaviour: Not run" in chip["steps"]["validate"]["detail"]
    assert not (tmp_path / "mirror").exists()
    path = tmp_path / "out" / "validation" / "bf16-hf-ascend" / "report.json"
    report = json.loads(path.read_bytes())
    for stage in report["stages"]:
        stage["verdict"] = "pass" if stage["name"] == "behaviour" else stage["verdict"]
    passed = {"verdict": "pass", "scope": {"until": None, "verdict": "pass"}}
    path.write_text(json.dumps(report | passed))  # as the chip's machine would have written it
    assert main(words) == 0
    assert (tmp_path / "mirror" / "small-v4-ascend-FlagOS" / "report.json").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_release_for_two_ranks_is_validated_on_two_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No stand-in: two processes, the engine, the trained model."""
    behaviour = {"prompts": 1, "repeats": 1, "max_tokens": 4, "margin": 90}
    recipe = write_recipe(
        tmp_path, stages=["integrity", "weights", "behaviour"], device="any", behaviour=behaviour,
        logits={"replay": {"documents": 2, "tokens": 32, "decode_tokens": 2}, "min_documents": 2, "min_tokens": 2,
                "min_decode_tokens": 1, "rounded": 100,
                "continuations": {"writing": {"documents": 2, "prompt_tokens": 4, "tokens": 4}, "min_tokens": 1}},
    )  # fmt: skip
    document = yaml.safe_load(recipe.read_text())
    document["releases"] = {"nvidia": {"dtype": "fp8", "layout": "mp2"}}
    recipe.write_text(yaml.safe_dump(document))
    texts = [{"name": f"t{n}", "kind": "short", "text": f"Ledger: cloud blaze {n}2 marsh quail 65"} for n in (4, 5)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    words = ["run", str(recipe), "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    code = main([*words, "--documents", str(tmp_path / "texts.jsonl")])
    step = json.loads(capsys.readouterr().out)["chips"][0]["steps"]["validate"]
    report = json.loads((tmp_path / "out" / "validation" / "fp8-mp2-nvidia" / "report.json").read_bytes())
    verdicts = {stage["name"]: stage["verdict"] for stage in report["stages"]}
    assert verdicts["integrity"] == verdicts["weights"] == "pass"
    assert verdicts["logits"] != "not-run"
    assert (code, step["status"]) in {(0, "done"), (7, "cannot-tell")}


@pytest.mark.slow
def test_every_release_of_the_shipped_recipe_has_its_own_folder_report_and_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], proved: list[str]
) -> None:
    """recipes/tiny.yaml has what the recipe of Flash has for each chip; the stages that run a model are left out."""
    document = yaml.safe_load((SOURCE.parents[2] / "recipes" / "tiny.yaml").read_text())
    document["source"]["path"] = str(SOURCE)
    document["validation"] = {"stages": ["integrity", "weights"]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    mirror, out = tmp_path / "mirror", tmp_path / "out"
    words = ["run", str(recipe), "--out", str(out), "--json", "--publish", str(mirror), "--yes"]
    assert main(words) == 0
    runs = json.loads(capsys.readouterr().out)["chips"]
    assert {status["status"] for one in runs for status in one["steps"].values()} == {"done"}
    wanted = [(chip, f"{r['format']}-{r['layout']}", r["stack"]) for chip, specs in document["releases"].items()
              for r in (specs if isinstance(specs, list) else [specs])]  # fmt: skip
    assert [(one["chip"], Path(one["release"]).name, one["stack"]) for one in runs] == wanted
    # Each conversion is proved once, and everything else is there for each release of each chip.
    assert sorted(proved) == sorted({name for _, name, _ in wanted})
    assert {path.name for path in (out / "validation").iterdir()} == {f"{name}-{chip}" for chip, name, _ in wanted}
    assert {f"FlagRelease/{path.name}" for path in mirror.iterdir()} == {one["repository"] for one in runs}
    assert len({one["repository"] for one in runs}) == len(wanted)
    for chip, name, stack in wanted:
        (one,) = [run for run in runs if (run["chip"], Path(run["release"]).name) == (chip, name)]
        card = (mirror / one["repository"].partition("/")[2] / "README.md").read_text()
        assert ("This release is made for" in card) == (stack != "flagos")
        assert "**Do not load" not in card
        # FP4 experts are exact in INT8 here, and dense FP8 weights in no format with a scale for each row
        assert ("**Lossless**" in card) == (name not in ("int8-hf", "fp8-channel-hf", "w8a8-ascend-hf"))


def test_one_release_of_a_chip_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load(write_recipe(tmp_path).read_text())
    document["releases"] = {"mthreads": [{"format": "fp8", "layout": "hf", "stack": "vllm-musa"},
                                         {"format": "fp8", "layout": "mp2", "stack": "flagos"}]}  # fmt: skip
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(document))
    words = ["run", str(recipe), "--out", str(tmp_path / "out"), "--until", "convert", "--json"]
    assert main([*words, "--chip", "mthreads:fp8-mp2"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["chips"]
    assert (Path(one["release"]).name, one["repository"]) == ("fp8-mp2", "FlagRelease/small-v4-mthreads-FlagOS")
    assert not (tmp_path / "out" / "fp8-hf").exists()
    assert main([*words, "--chip", "mthreads:bf16-hf"]) == 2
    assert "this recipe has mthreads:fp8-hf, mthreads:fp8-mp2" in capsys.readouterr().err

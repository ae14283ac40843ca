"""`flagrelease validate` from end to end: what passes, what fails where, what is not run and why."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from defective_ports import roll_rows, spoil_tensors
from scripted_exam import MARKER
from small_validation import PASSED, Workshop, read_report, recipe, stage_of, verdicts, write_recipe

from flagrelease import cli
from flagrelease.chips.table import get_chip
from flagrelease.errors import UsageError, VerificationError
from flagrelease.records.computed_on import ByEngine
from flagrelease.records.release import read_release
from flagrelease.records.report import parse_report, read_passing_report
from flagrelease.records.rules import ValidationRules
from flagrelease.validate.stages.file_stages import IntegrityStage
from flagrelease.validate.stages.request import ValidationRequest


def manifest_sha256(release: Path) -> str:
    return hashlib.sha256((release / "manifest.json").read_bytes()).hexdigest()


def request_of(release: Path) -> ValidationRequest:
    rules = ValidationRules(stages=("integrity",))
    return ValidationRequest(
        release=read_release(release), chip=get_chip("ascend"), rules=rules, out=release.parent / "out"
    )


def test_a_sound_release_passes_every_stage(workshop: Workshop, validated: Path) -> None:
    release = workshop.release("bf16")
    assert verdicts(validated) == PASSED
    report, _ = read_passing_report(validated / "report.json", manifest_sha256(release), "ascend")
    assert [benchmark.task for benchmark in report.benchmarks] == ["Choices"]
    assert report.weights_proved
    assert report.commands == (
        "flagrelease validate bf16-hf --chip ascend --recipe recipe.yaml --source source --baseline baseline "
        "--data choices=choices.jsonl --device cpu",
    )
    (computed,) = report.computed_on or ()
    assert isinstance(computed, ByEngine)
    assert (computed.stages, computed.device) == (("logits", "benchmarks", "behaviour"), "cpu")
    assert computed.chips_own is False
    assert report.seeds == {"logits: bootstrap": 0, "benchmark: choices": 0, "behaviour": 0}
    assert {"python", "torch", "flagrelease", "device"} <= report.environment.keys()
    behaviour = report.stages[-1]
    assert behaviour.figures["golden_pairs"] == 4
    assert behaviour.figures["token_mismatches"] == []
    page = (validated / "report.html").read_text(encoding="utf-8")
    assert "small-v4 for ascend" in page
    assert f"Computed on {computed.machine}: proves the tool, not the chip." in page
    assert "on ascend" not in page
    assert 'id="items-0-t"' in page


def test_it_says_so_at_the_terminal(workshop: Workshop, validated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (validated / "report.json").read_bytes()
    assert cli.main(workshop.validation(workshop.release("bf16"), validated)) == 0
    said, talk = capfd.readouterr()
    assert said.startswith("PASS")
    assert "Choices" in said
    assert said.splitlines()[1].startswith(f"computed on {platform.machine()} CPU (")
    assert "on ascend" not in said
    assert "NOT INFORMATIVE" in said
    assert "this release cut off 100%, without an answer 100%, refused 0%; native cut off 100%" in said, (
        "what the scores are worth stands beside them"
    )
    assert "numerics" not in talk, "a finished validation loads no model"
    assert cli.main(workshop.validation(workshop.release("bf16"), validated, "--json")) == 0
    printed = capfd.readouterr().out
    assert printed.encode() == before == (validated / "report.json").read_bytes()


def test_an_fp8_release_is_judged_against_the_native_run(workshop: Workshop, tmp_path: Path) -> None:
    release = workshop.release("fp8")
    asked = workshop.validation(release, tmp_path / "out", "--layers", "--until", "logits", chip="mthreads")
    assert cli.main(asked) == 0
    assert verdicts(tmp_path / "out") == PASSED | {"benchmarks": "not-run", "behaviour": "not-run"}
    logits = stage_of(tmp_path / "out", "logits")["figures"]
    assert {c["reference"] for c in logits["comparisons"] if c["decides"]} == {"native"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="layers-streams-t"' in page


def test_a_changed_byte_fails_integrity_and_stops_the_rest(workshop: Workshop, tmp_path: Path) -> None:
    release = shutil.copytree(workshop.release("bf16"), tmp_path / "bf16-hf")
    file = next(release.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert cli.main(workshop.validation(release, tmp_path / "out")) == 5
    assert verdicts(tmp_path / "out") == dict.fromkeys(PASSED, "not-run") | {"integrity": "fail"}
    stages = read_report(tmp_path / "out")["stages"]
    assert file.name in stages[0]["detail"]
    assert {stage["detail"] for stage in stages[1:]} == {"Not run: the stage integrity failed."}


def test_wrong_weights_under_a_right_manifest(workshop: Workshop, tmp_path: Path) -> None:
    release = shutil.copytree(workshop.release("bf16"), tmp_path / "bf16-hf")
    spoil_tensors(release, roll_rows)
    assert cli.main(workshop.validation(release, tmp_path / "with")) == 5
    assert verdicts(tmp_path / "with")["weights"] == "fail"
    without = workshop.validation(release, tmp_path / "without")
    at = without.index("--source")
    assert cli.main(without[:at] + without[at + 2 :]) == 5
    assert verdicts(tmp_path / "without") == {
        "integrity": "pass", "weights": "pass", "logits": "fail", "benchmarks": "not-run", "behaviour": "not-run",
    }  # fmt: skip
    assert "needs --source" in read_report(tmp_path / "without")["stages"][1]["leaves_open"][0]
    assert not parse_report((tmp_path / "without" / "report.json").read_bytes(), "report.json").weights_proved


def test_without_a_baseline_the_file_stages_are_run(
    workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["validate", str(workshop.release("bf16")), "--chip", "ascend", "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 7
    assert verdicts(tmp_path / "out") == PASSED | dict.fromkeys(("logits", "benchmarks", "behaviour"), "not-run")
    assert "No verdict without logits, benchmarks, behaviour" in capfd.readouterr().out
    report = read_report(tmp_path / "out")
    assert report["rules"]["benchmarks"].keys() == {"gpqa", "aime"}, "the default rules"
    details = [stage_of(tmp_path / "out", name)["detail"] for name in ("logits", "benchmarks", "behaviour")]
    assert all("no baseline was given" in detail for detail in details)
    assert "needs --endpoint" in stage_of(tmp_path / "out", "preflight")["detail"]


def test_the_file_stages_need_no_torch(workshop: Workshop, tmp_path: Path) -> None:
    heavy = ("torch", "triton", "tokenizers", "safetensors", "lm_eval", "openai", "numba", "transformers")
    words = ["validate", str(workshop.release("fp8")), "--chip", "mthreads", "--out", str(tmp_path / "out")]
    words += ["--source", str(workshop.source), "--recipe", str(workshop.recipe)]
    code = f"import sys\nfor name in {heavy}: sys.modules[name] = None\n"
    code += f"from flagrelease import cli\nsys.exit(cli.main({words}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert verdicts(tmp_path / "out")["weights"] == "pass"
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_no_question_is_in_anything_that_is_written(workshop: Workshop, validated: Path) -> None:
    assert MARKER in workshop.data.read_text()
    written = [path for folder in (validated, workshop.baseline) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if MARKER.encode() in path.read_bytes()] == []


def test_a_release_without_a_file_is_not_informative(workshop: Workshop, tmp_path: Path) -> None:
    """Nothing in it differed from its manifest, so every check of it passed."""
    release = tmp_path / "bf16-hf"
    release.mkdir()
    manifest = json.loads((workshop.release("bf16") / "manifest.json").read_bytes())
    nothing: dict[str, object] = {"files": [], "tensors": {}}
    (release / "manifest.json").write_text(json.dumps(manifest | nothing))
    stage = IntegrityStage(request_of(release)).run(lambda *_: None).stage
    assert (stage.verdict, stage.proves) == ("not-informative", ())
    assert stage.detail == "Not informative: the manifest names not one file."


def test_rules_that_ask_for_files_only(workshop: Workshop, tmp_path: Path) -> None:
    rules = recipe(workshop.source) | {"validation": {"stages": ["integrity", "weights"]}}
    asked = ["validate", str(workshop.release("bf16")), "--chip", "ascend", "--out", str(tmp_path / "out")]
    assert cli.main([*asked, "--recipe", str(write_recipe(tmp_path / "r.yaml", rules))]) == 0
    assert read_report(tmp_path / "out")["verdict"] == "pass"


def test_what_was_asked_for_passes_and_proves_no_more_than_it_did(
    workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pipeline that asks for the weights alone can be green; nothing that was left out counts as done."""
    release = workshop.release("bf16")
    assert cli.main(workshop.validation(release, tmp_path / "out", "--until", "weights")) == 0
    said = capfd.readouterr().out
    assert said.startswith("CANNOT TELL")
    assert "no figure of the model was computed" in said
    assert "What was asked for passed (--until weights). It is no pass of the release" in " ".join(said.split())
    assert cli.main(workshop.validation(release, tmp_path / "out", "--until", "weights", "--json")) == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["verdict"], printed["scope"]) == ("cannot-tell", {"until": "weights", "verdict": "pass"})
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What was asked for, --until weights, passed. As a whole: " in page
    with pytest.raises(VerificationError, match="verdict is 'cannot-tell'"):
        read_passing_report(tmp_path / "out" / "report.json", manifest_sha256(release), "ascend")


def test_only_the_chips_own_device_counts(
    workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    document = recipe(workshop.source, device="chip")
    path = str(write_recipe(tmp_path / "r.yaml", document))
    asked = workshop.validation(workshop.release("bf16"), tmp_path / "out", "--recipe", path)
    assert cli.main(asked) == 2
    assert "count only what ascend's own kind of device (npu) computed" in capfd.readouterr().err
    at = asked.index("--device")
    assert cli.main(asked[:at] + asked[at + 2 :]) == 7
    details = [stage_of(tmp_path / "out", name)["detail"] for name in ("logits", "benchmarks", "behaviour")]
    assert all("torch_npu, which is not installed" in detail for detail in details)


def test_the_default_folder_is_where_publish_looks(workshop: Workshop, tmp_path: Path) -> None:
    release = shutil.copytree(workshop.release("bf16"), tmp_path / "releases" / "bf16-hf")
    assert cli.main(["validate", str(release), "--chip", "huawei", "--until", "integrity"]) == 0
    report = json.loads((tmp_path / "releases" / "validation" / "bf16-hf-ascend" / "report.json").read_bytes())
    assert report["chip"] == "ascend"
    assert report["stages"][1]["detail"] == "Not run: not asked for (--until integrity)."


def test_it_stops_where_a_stage_would_be_that_this_program_does_not_run(workshop: Workshop, tmp_path: Path) -> None:
    release = workshop.release("bf16")
    assert cli.main(workshop.validation(release, tmp_path / "out", "--until", "preflight")) == 7
    stages = {stage["name"]: stage["detail"] for stage in read_report(tmp_path / "out")["stages"]}
    assert stages["logits"] == "Not run: not asked for (--until preflight)."
    assert "second decoder" in stages["weights"]


def test_of_a_sandbox_the_report_names_the_program_alone(workshop: Workshop) -> None:
    """Its words stood in the report: folders of the machine, and what `-e KEY=..` gives to a container."""
    asked = replace(request_of(workshop.release("bf16")), sandbox="/opt/tools/docker run -e KEY=hunter2 image python -")
    assert "--sandbox 'docker ..'" in asked.command
    assert "hunter2" not in asked.command


@pytest.mark.parametrize("command", ["", "docker run 'image"])
def test_a_sandbox_that_is_no_command_is_refused_though_nothing_is_code(workshop: Workshop, command: str) -> None:
    """It ended the run where the report was written."""
    with pytest.raises(UsageError, match="--sandbox"):
        replace(request_of(workshop.release("bf16")), sandbox=command)

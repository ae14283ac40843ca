"""Which verdicts of the stages that run the model stand under what is asked now. The outcomes are planted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from night_runs import write_recipe

from flagrelease.chips.table import get_chip
from flagrelease.records.recipe import read_recipe
from flagrelease.records.release import read_release
from flagrelease.records.report import Stage
from flagrelease.records.rules import ValidationRules
from flagrelease.run.baseline import outdated_parts, record_baseline
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun
from flagrelease.run.validation import validate_chip
from flagrelease.run.verification import file_inputs
from flagrelease.validate.stages import run as stages_run
from flagrelease.validate.stages.former import model_inputs, own_rules, read_former
from flagrelease.validate.stages.preconditions import Prepared
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.stage import Outcome, Watch

STAGES = ["integrity", "weights", "logits", "behaviour"]
MACHINE = {"flagrelease": "0.1.0", "python": "3.12", "torch": "2.13"}


@pytest.fixture
def asked(night: Path, monkeypatch: pytest.MonkeyPatch) -> ValidationRequest:
    """A validation that passed, with a baseline of two parts."""
    baseline = night / "out" / "baseline"
    (baseline / "logits").mkdir(parents=True)
    (baseline / "logits" / "baseline.json").write_text("logits")
    (baseline / "behaviour.json").write_text("behaviour")
    rules = ValidationRules.model_validate({"stages": STAGES, "device": "any"})
    release = read_release(night / "out" / "bf16-hf")
    out = night / "out" / "validation" / "planted"
    request = ValidationRequest(release, get_chip("ascend"), rules, out, baseline=baseline, device="cpu")
    monkeypatch.setattr("flagrelease.run.validation.describe_environment", lambda _: MACHINE)
    judge(request, dict.fromkeys(STAGES, "pass"))
    return request


def judge(asked: ValidationRequest, verdicts: dict[str, str], environment: dict[str, str] = MACHINE) -> None:
    """Finish the stages that are not finished, and write the report."""
    inputs = file_inputs(asked.release.manifest.source.identity) | model_inputs(asked)
    with stages_run.open_state(asked, environment) as state:
        outcomes = []
        for name, verdict in verdicts.items():
            stage = Stage.model_validate({"name": name, "verdict": verdict, "detail": f"{name}: {verdict}."})
            outcome = Outcome(stage=stage, inputs=inputs[stage.name])
            outcomes.append(state.finished(stage.name, outcome.inputs) or state.finish(outcome))
        stages_run._write_report(asked, environment, outcomes)


def reasons(asked: ValidationRequest) -> list[str]:
    former = read_former(asked.out)
    assert former is not None
    return former.reasons(asked, file_inputs(asked.release.manifest.source.identity) | model_inputs(asked))


def with_rules(asked: ValidationRequest, **changed: object) -> ValidationRequest:
    document = asked.rules.model_dump(mode="json")
    return replace(asked, rules=ValidationRules.model_validate(document | changed))


def test_what_decides_whether_a_verdict_answers(asked: ValidationRequest) -> None:
    assert reasons(asked) == []
    assert reasons(replace(asked, operators="triton")) == [], "a verdict of other operators stands"
    other = with_rules(asked, behaviour={"margin": 12})
    assert reasons(other) == ["the rules changed (behaviour.margin: 10.0 -> 12.0)"]
    assert asked.baseline is not None
    (asked.baseline / "behaviour.json").write_text("recorded again")
    assert reasons(asked) == ["behaviour rests on another baseline"]
    (asked.baseline / "behaviour.json").unlink()
    assert reasons(asked) == [], "of a part that is not here nothing can be said"


def run_again(
    asked: ValidationRequest, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str] = MACHINE
) -> tuple[list[str], str, ChipRun]:
    """Validate again: which stages that run the model were run, why, and the run."""
    ran: list[str] = []

    def validate(ready: Prepared, _: Watch) -> None:
        former = read_former(ready.request.out)
        ran.extend(name for name in STAGES if former is None or name not in former.outcomes)
        judge(ready.request, dict.fromkeys(STAGES, "pass"), environment)

    monkeypatch.setattr("flagrelease.run.validation.validate", validate)
    monkeypatch.setattr("flagrelease.run.validation.prepare", lambda one: Prepared(one, None, "none", {}, None))  # type: ignore[arg-type]
    monkeypatch.setattr("flagrelease.run.validation.describe_environment", lambda _: environment)
    recipe = write_recipe(asked.out.parents[2])
    request = RunRequest(recipe, read_recipe(recipe), asked.out.parents[1])
    run = ChipRun(request.wanted[0], asked.release.folder, asked.release, asked)
    step = validate_chip(request, run, file_inputs(asked.release.manifest.source.identity))
    assert step.status == "done"
    return ran, step.why, run


def test_changed_rules_redo_the_stages_that_they_are_about(
    asked: ValidationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (asked.out / "report.json").read_bytes()
    ran, why, run = run_again(with_rules(asked, behaviour={"margin": 12}), monkeypatch)
    assert (ran, why) == (["behaviour"], "the rules changed (behaviour.margin: 10.0 -> 12.0)")
    (kept,) = run.history
    assert (kept / "report.json").read_bytes() == before
    ran, why, _ = run_again(with_rules(asked, logits={"rounded": 3}, behaviour={"margin": 12}), monkeypatch)
    assert ran == ["logits"]
    assert own_rules(asked.rules, "logits") != own_rules(with_rules(asked, device="chip").rules, "logits")


def test_a_stage_that_failed_is_not_tried_again_by_a_change_of_another_ones_rules(
    asked: ValidationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (asked.out / "state" / "logits.json").unlink()
    judge(asked, {"integrity": "pass", "weights": "pass", "logits": "fail"})
    changed = with_rules(asked, behaviour={"margin": 12})
    with pytest.raises(AssertionError, match="failed"):
        run_again(changed, monkeypatch)
    former = read_former(asked.out)
    assert former is not None
    assert former.outcomes["logits"].stage.verdict == "fail"


def test_without_a_verdict_another_machine_begins_anew_but_for_the_files(
    asked: ValidationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of two machines would be mixed, and the folder refused the second."""
    (asked.out / "state" / "behaviour.json").unlink()
    judge(asked, {"integrity": "pass", "weights": "pass", "logits": "pass", "behaviour": "cannot-tell"})
    ran, why, _ = run_again(asked, monkeypatch, MACHINE | {"torch": "2.14"})
    assert why == "it was begun on another machine (torch 2.13 -> 2.14)"
    assert ran == ["logits", "behaviour"]


def test_a_baseline_is_recorded_again_in_the_parts_that_changed(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def request(**validation: object) -> RunRequest:
        recipe = write_recipe(night, validation={"stages": STAGES, "device": "any"} | validation)
        return RunRequest(recipe, read_recipe(recipe), night / "out")

    def record(recording: object, _: object) -> None:
        folder = night / "out" / "baseline"
        for path in (folder / "logits" / "baseline.json", folder / "continuations.json", folder / "behaviour.json"):
            if not path.exists():
                recorded.append(path.relative_to(folder).parts[0])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(recorded))

    recorded: list[str] = []
    monkeypatch.setattr("flagrelease.run.baseline.record", record)
    release = read_release(night / "out" / "bf16-hf")
    first = request()
    runs = [ChipRun(first.wanted[0], release.folder, release)]
    assert outdated_parts(first, "source 1") == {}
    record_baseline(first, runs, night, "source 1")
    assert recorded == ["logits", "continuations.json", "behaviour.json"]
    record_baseline(first, runs, night, "source 1")
    assert len(recorded) == 3
    other = request(behaviour={"max_tokens": 99})
    assert outdated_parts(other, "source 1") == {"behaviour": "behaviour.max_tokens: 4096 -> 99"}
    record_baseline(other, runs, night, "source 1")
    assert recorded[3:] == ["behaviour.json"]
    begun = {"logits": {"continuations": {"writing": {"seed": 1}}}}
    said = "writing.seed: 0 -> 1"
    assert outdated_parts(request(behaviour={"max_tokens": 99}, **begun), "source 1") == {"continuations": said}
    (old,) = (night / "out" / "history" / "baseline").iterdir()
    assert [path.name for path in old.iterdir()] == ["behaviour.json"]
    assert outdated_parts(other, "source 1") == {}
    assert set(outdated_parts(other, "source 2")) == {"logits", "continuations", "behaviour"}
    assert outdated_parts(replace(other, baseline=night), "source 2") == {}, "one that was made elsewhere"

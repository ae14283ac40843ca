"""The logits stage of a validation over an endpoint: the gate, then the documents; and what stops it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from defective_ports import ported, unclamped_shared_expert
from endpoint_standin import Answer, Standin
from served_model import NAME, serving
from small_validation import Workshop

from flagrelease import cli, engine
from flagrelease.chips.table import get_chip
from flagrelease.engine.v4.model import Model
from flagrelease.errors import VerificationError
from flagrelease.records.release import read_release
from flagrelease.records.report import Stage
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.logits.continuations.stored import Continuations
from flagrelease.validate.stages.logits_stage import LogitsStage
from flagrelease.validate.stages.model_stages import StageInputs
from flagrelease.validate.stages.preconditions import prepare
from flagrelease.validate.stages.request import ValidationRequest, choose_rules


@pytest.fixture(scope="module")
def model(workshop: Workshop) -> Model:
    return engine.load(workshop.release("bf16"), "bf16")


@pytest.fixture(scope="module")
def server(workshop: Workshop, model: Model) -> Iterator[Endpoint]:
    with serving(ported(model, None), workshop.source) as endpoint:
        yield endpoint


def stage_of(workshop: Workshop, endpoint: Endpoint | None, out: Path, baseline: Path | None = None) -> LogitsStage:
    """Of a machine without any device: the server computes."""
    release, chip = read_release(workshop.release("bf16")), get_chip("ascend")
    request = ValidationRequest(
        release=release,
        chip=chip,
        rules=choose_rules(workshop.recipe, release, chip),
        out=out,
        baseline=baseline or workshop.baseline,
        endpoint=endpoint,
        device="cpu",
    )
    return LogitsStage(StageInputs(prepare(request), "this machine has no device"))


def run(stage: LogitsStage) -> Stage:
    assert stage.missing() is None
    return stage.run(lambda what, done, total, unit: None).stage


def test_gate_and_documents_over_a_server(workshop: Workshop, server: Endpoint, tmp_path: Path) -> None:
    assert stage_of(workshop, None, tmp_path).missing() == "this machine has no device"
    stage = stage_of(workshop, server, tmp_path)
    found = run(stage)
    assert found.verdict == "pass", found.detail
    assert found.figures["served"]["documents"] == 4  # type: ignore[index, call-overload]
    assert found.figures["continuations"]["tokens"] > 2  # type: ignore[index, call-overload, operator]
    assert "tokens that the native model wrote" in found.detail
    assert stage.inputs()["answerer"] == f"{NAME} at {server.url}"
    assert run(stage) == found, "everything is in the work folder"


def test_a_gate_that_fails_is_the_stage_and_no_document_is_asked_for(
    workshop: Workshop, model: Model, tmp_path: Path
) -> None:
    with serving(ported(model, unclamped_shared_expert), workshop.source) as endpoint:
        found = run(stage_of(workshop, endpoint, tmp_path))
    assert found.verdict == "fail"
    assert "Nothing longer was run." in found.detail
    assert "served" not in found.figures
    assert not (tmp_path / "work" / "logits-served").exists()


def test_without_logits_of_documents_the_gate_cannot_pass_the_stage(
    workshop: Workshop, server: Endpoint, tmp_path: Path
) -> None:
    baseline = shutil.copytree(workshop.baseline, tmp_path / "baseline")
    shutil.rmtree(baseline / "logits")
    found = run(stage_of(workshop, server, tmp_path / "out", baseline))
    assert found.verdict == "cannot-tell"
    assert found.detail.endswith("The baseline has no logits of documents to compare.")


def test_texts_of_another_model_or_under_other_rules_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    baseline = shutil.copytree(workshop.baseline, tmp_path / "baseline")
    path = baseline / "continuations.json"
    document = json.loads(path.read_bytes())
    for change, said in (
        ({"subject": "source 0"}, "another model"),
        ({"rules": document["rules"] | {"seed": 5}}, "other rules of logits.continuations.writing"),
        ({"texts": []}, "texts"),
    ):
        path.write_text(json.dumps(document | change))
        with pytest.raises(VerificationError, match=said):
            stage_of(workshop, Endpoint("http://127.0.0.1:9/v1", NAME), tmp_path / "out", baseline)


def test_a_server_that_cannot_is_named_and_may_be_asked_again(
    workshop: Workshop, server: Endpoint, tmp_path: Path
) -> None:
    with Standin(lambda request: Answer(400, {"error": {"message": "no"}})) as standin:
        found = run(stage_of(workshop, replace(server, url=standin.url), tmp_path))
    assert found.verdict == "not-run"
    assert found.detail.startswith(f"Not run: the server at {standin.url} gives no log-probabilities of prompts (")
    assert "prompt-logprobs: HTTP 400" in found.detail
    assert "echo-text-bos: HTTP 400" in found.detail


def test_a_server_writes_and_scores_the_texts_of_a_baseline(
    workshop: Workshop, server: Endpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """That it serves the source is the word of whoever records."""
    there = ["--part", "continuations", "--endpoint", server.url, "--model", NAME]
    assert cli.main(workshop.recording(tmp_path / "baseline", *there)) == 0
    made = Continuations.read(tmp_path / "baseline" / "continuations.json")
    assert made.stack == f"{NAME} at {server.url}"
    assert [len(text.prompt) for text in made.texts] == [8, 8]
    assert all(1 <= len(text.answer) <= 6 for text in made.texts)
    assert len(run(stage_of(workshop, server, tmp_path / "out")).figures["continuations"]["texts"]) == 2  # type: ignore
    with Standin(lambda request: Answer(400, {"error": {"message": "no"}})) as standin:
        there[there.index(server.url)] = standin.url
        capfd.readouterr()
        assert cli.main(workshop.recording(tmp_path / "other", *there)) == 2
    said = capfd.readouterr().err
    assert "gives no log-probabilities of prompts" in said
    assert "record the continuations with the bundled engine" in said

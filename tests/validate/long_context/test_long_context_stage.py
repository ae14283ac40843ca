"""The stage in its place: what it lacks, what it asks, what it records, what the page shows of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scripted_contexts import RULES, TINY, Oracle, exams_of, scripted

from flagrelease.errors import UsageError, VerificationError
from flagrelease.records.rules import LongContextRules, ValidationRules
from flagrelease.records.source_identity import identify
from flagrelease.validate.baseline import BaselineFolder, subject_of_source
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.exams.side import Side
from flagrelease.validate.long_context.items import ContextExam
from flagrelease.validate.page.key_figures import key_figure
from flagrelease.validate.page.long_context_panels import long_context_panels, shortest
from flagrelease.validate.stages import long_context
from flagrelease.validate.stages.long_context import LongContextStage
from flagrelease.validate.stages.model_stages import StageInputs
from flagrelease.validate.stages.preconditions import NativeAnswers, read_native
from flagrelease.validate.stages.record import Recording, record

ENDPOINT = Endpoint("http://localhost/v1", "tiny")


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[Oracle]:
    """Who answers finds everything but the first entry of the long registers. The answerers that were opened."""
    opened: list[Oracle] = []

    @contextmanager
    def answering(exam: ContextExam, *_: object, longest: int) -> Iterator[Oracle]:
        assert longest == exam.rules.length
        lost = {item.id for item in exam.items if item.id.startswith("0/") and longest == 152}
        opened.append(Oracle(exam, frozenset(lost), prompt_tokens=longest))
        yield opened[-1]

    monkeypatch.setattr(long_context, "answering", answering)
    return opened


def given_of(folder: Path, rules: LongContextRules | None = RULES, **more: Any) -> StageInputs:
    """What a validation over an endpoint hands to the stage."""
    request = SimpleNamespace(
        rules=ValidationRules(long_context=rules),
        endpoint=ENDPOINT,
        out=folder / "out",
        release=SimpleNamespace(folder=TINY, manifest_sha256="ab" * 32),
        operators="auto",
    )
    native = more.get("native", {})
    ready = SimpleNamespace(request=request, baseline=BaselineFolder(folder), native=NativeAnswers(native))
    return StageInputs(cast(Any, ready), "no device")


def save(folder: Path, rules: LongContextRules = RULES) -> dict[int, Side]:
    native = scripted(exams_of(rules), lambda *_: "right", subject_of_source(identify(TINY).digest))
    for length, side in native.items():
        path = BaselineFolder(folder).context_answers(length)
        path.parent.mkdir(parents=True, exist_ok=True)
        side.save(path)
    return native


def test_it_says_what_it_lacks(tmp_path: Path) -> None:
    assert LongContextStage(given_of(tmp_path, None)).missing() == "the rules have no long_context"
    stage = LongContextStage(given_of(tmp_path))
    assert stage.missing() == "the baseline has no answers in contexts of 80, 152 tokens"
    save(tmp_path, RULES.model_copy(update={"lengths": (80,)}))
    assert stage.missing() == "the baseline has no answers in contexts of 152 tokens"
    save(tmp_path)
    assert stage.missing() is None
    assert stage.inputs()["answerer"] == "tiny at http://localhost/v1"
    assert BaselineFolder.open(tmp_path).parts() == ["long-context/80", "long-context/152"]


def test_a_run_over_an_endpoint_asks_every_length_once_and_finds_the_lost_depth(
    tmp_path: Path, answered: list[Oracle]
) -> None:
    native = save(tmp_path)
    stage = LongContextStage(given_of(tmp_path, native=native))
    outcome = stage.run(lambda *_: None)
    assert outcome.stage.verdict == "fail"
    assert "depth 0%, 152 tokens (0 of 20, native 20)" in outcome.stage.detail
    assert [len(answerer.asked) for answerer in answered] == [60, 60]
    assert stage.run(lambda *_: None) == outcome  # from the journals
    assert [len(answerer.asked) for answerer in answered] == [60, 60, 0, 0]
    assert key_figure(outcome.stage, ()) == "83.3%, native 100.0%"


def test_the_page_has_both_maps_and_every_cell(tmp_path: Path, answered: list[Oracle]) -> None:
    outcome = LongContextStage(given_of(tmp_path, native=save(tmp_path))).run(lambda *_: None)
    chip, native, difference = long_context_panels(outcome.stage)
    assert chip.picture is not None
    assert native.picture is not None
    assert difference.picture is not None
    drawn = str(chip.picture.wide)
    assert drawn.count("failed") == 1
    assert "0%, 152: 0 of 20" in drawn
    assert "failed" not in str(native.picture.wide)
    assert chip.table is not None
    assert len(chip.table.rows) == 6 + 2 + 3
    assert "1 of 6 cells are lost beyond chance" in chip.words
    assert [shortest(length) for length in (4096, 131072, 1 << 20, 1000000, 152)] == [
        "4k",
        "128k",
        "1M",
        "1000000",
        "152",
    ]


def test_recording_writes_a_file_a_length_and_goes_on(tmp_path: Path, answered: list[Oracle]) -> None:
    recording = Recording(
        TINY, tmp_path, ValidationRules(long_context=RULES), parts=("long-context",), endpoint=cast(Any, ENDPOINT)
    )
    assert record(recording, lambda *_: None).parts() == ["long-context/80", "long-context/152"]
    BaselineFolder(tmp_path).context_answers(152).unlink()
    record(recording, lambda *_: None)
    assert [len(answerer.asked) for answerer in answered] == [60, 60, 0]  # the journal has the second's
    found = read_native(BaselineFolder(tmp_path), recording.rules, identify(TINY).digest, {}, TINY)
    assert list(found.long_context) == [80, 152]


def test_what_cannot_be_compared_or_asked_is_refused_before_anything_is_asked(
    tmp_path: Path, answered: list[Oracle]
) -> None:
    save(tmp_path)
    baseline, identity = BaselineFolder(tmp_path), identify(TINY).digest
    with pytest.raises(VerificationError, match="answers of source"):
        read_native(baseline, ValidationRules(long_context=RULES), "another", {}, TINY)
    hot = ValidationRules(long_context=RULES.model_copy(update={"temperature": 1.0}))
    with pytest.raises(VerificationError, match="another temperature"):
        read_native(baseline, hot, identity, {}, TINY)
    long = ValidationRules(long_context=LongContextRules(lengths=(1_048_576,)))
    with pytest.raises(UsageError, match="the model has 1048576"):
        record(Recording(TINY, tmp_path, long, parts=("long-context",)), lambda *_: None)
    with pytest.raises(UsageError, match="the rules have no long_context"):
        Recording(TINY, tmp_path, ValidationRules(), parts=("long-context",))
    other = RULES.model_copy(update={"depths": (0, 40, 100)})
    given = given_of(tmp_path, other, native=save(tmp_path))
    with pytest.raises(VerificationError, match="sat another exam"):
        LongContextStage(given).run(lambda *_: None)
    assert not answered

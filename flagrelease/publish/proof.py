"""What a card says was proved and measured: the stages of the validation, and the scores of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.publish.claims import Advice, Claim, Columns, Line, Row, Status, report
from flagrelease.publish.losses import losses
from flagrelease.publish.records import Records
from flagrelease.records.computed_on import ByEngine
from flagrelease.records.rates import say_rates
from flagrelease.records.report import Report, Score, Stage

_OF_FILES = ("integrity", "weights")


def computed_line(records: Records) -> Claim:
    """Where the figures were computed: it stands right below the title."""
    if records.report is None:
        return Claim("not run", None, "**No figure of this release was computed: it was not validated.**", bullet=False)
    text = records.report.computed_where
    said = f"**Figures: {text}.**"
    computers = records.report.computed_on
    if computers is None:
        where = report("/environment" if records.report.environment else "/stages")
        return Claim("measured", where, said, bullet=False)
    if not computers:
        return Claim("not run", None, said, bullet=False)
    own = all(isinstance(each, ByEngine) for each in computers)
    return Claim("measured" if own else "inferred", report("/computed_on"), said, bullet=False)


def proof(records: Records) -> Iterator[Line]:
    """The section about exactness and stages."""
    yield "## What was proved"
    yield ""
    yield from losses(records.manifest, weights_status(records))
    yield ""
    if records.report is None:
        yield Claim("not run", None, "**This release was published without validation on its chip.**", bullet=False)
        yield ""
        yield Columns(("stage", "verdict", "detail"))
        for name in records.recipe.validation.stages:
            yield Row("not run", None, (name, "not-run", "There is no report."))
        return
    yield Columns(("stage", "verdict", "detail"))
    for number, stage in enumerate(records.report.stages):
        row = (stage.name, stage.verdict, stage.detail)
        yield Row(_status(stage, records.report), report(f"/stages/{number}"), row)
    yield ""
    for number, stage in enumerate(records.report.stages):
        yield from _sentences(number, stage, records.report)
    yield ""
    if not records.weights_proved:
        yield Claim(
            "not run",
            report("/stages"),
            "**The weights were not compared with those they were made from, only with digests in the manifest: a "
            "fault of the conversion is not excluded.**",
            bullet=False,
        )
        yield ""
    yield Advice("The whole record is `report.json`.")
    if records.report.environment:
        machine = ", ".join(f"{name} {value}" for name, value in records.report.environment.items())
        yield Claim("measured", report("/environment"), f"It was made with {machine}.", bullet=False)
    if records.report.rules.device == "any":
        said = "**Its figures count wherever they were computed, so they prove nothing of this chip.**"
        yield Claim("not run", report("/rules/device"), said, bullet=False)


def evaluation(records: Records) -> Iterator[Line]:
    """The section about benchmarks: every score with its interval and with the answers that were none."""
    yield "## Evaluation"
    yield ""
    if records.report is None or not records.report.benchmarks:
        yield Claim("not run", None, "No benchmark was run with this release.", bullet=False)
        return
    yield Columns(("benchmark", "n x repeats", "native", "this release", "answers that are none", "verdict"))
    for number, entry in enumerate(records.report.benchmarks):
        native = "not run" if entry.native is None else _score(entry.native)
        rates = f"this release: {say_rates(entry, 'chip')}"
        rates += "" if entry.native is None else f"; native: {say_rates(entry, 'native')}"
        cells = (
            f"{entry.task} ({entry.metric}, {entry.unit})", f"{entry.n} x {entry.repeats}", native,
            _score(entry.chip), rates, entry.verdict,
        )  # fmt: skip
        yield Row("measured", report(f"/benchmarks/{number}"), cells)
    yield ""
    for number, entry in enumerate(records.report.benchmarks):
        stack = f" Native: {entry.native_stack}." if entry.native_stack else ""
        said = f"{entry.task}: `{entry.dataset}` at `{entry.revision}`; {entry.mode}. Rule: {entry.rule}.{stack}"
        yield Claim("measured", report(f"/benchmarks/{number}/rule"), said)


def files_status(records: Records) -> Status:
    """Of what can be read off the files: proved if they were compared with the manifest."""
    passed = records.report is not None and any(
        (stage.name, stage.verdict) == ("integrity", "pass") for stage in records.report.stages
    )
    return "proved" if passed else "inferred"


def weights_status(records: Records) -> Status:
    """Of what is said of values: proved if a second decoder compared them with the source."""
    return "proved" if records.weights_proved else "inferred"


def _status(stage: Stage, whole: Report) -> Status:
    if stage.verdict == "not-run":
        return "not run"
    if stage.name == "weights" and not whole.weights_proved:
        return "inferred"
    return "proved" if stage.name in _OF_FILES else "measured"


def _sentences(number: int, stage: Stage, whole: Report) -> Iterator[Line]:
    for place, sentence in enumerate(stage.proves):
        status = _status(stage, whole)
        yield Claim(status, report(f"/stages/{number}/proves/{place}"), f"{stage.name}: {sentence}")
    for place, sentence in enumerate(stage.leaves_open):
        said = f"{stage.name} leaves open: {sentence}"
        yield Claim("not run", report(f"/stages/{number}/leaves_open/{place}"), said)


def _score(score: Score) -> str:
    low, high = round(score.low, 2), round(score.high, 2)
    return f"{round(score.value, 2):g} ({score.confidence:.0%}: {low:g} to {high:g})"

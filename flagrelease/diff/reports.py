"""What moved between two validations of one release on one chip: verdicts, limits, measures, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from flagrelease.diff.difference import ValueDifference
from flagrelease.diff.values import entry_differences, value_differences
from flagrelease.records.report import Report

_NAMES = ("task", "name", "reference", "replay", "measure", "label")  # by which an entry of a list is told from others


@dataclass(frozen=True, slots=True)
class MovedMeasure:
    """A number of a stage that has a verdict of its own.

    Attributes:
        name: where it stands, such as `logits: native, prefill: mean_kl`.
        before, after: the number, None where it is absent.
        verdicts: its verdict before and after; empty where it is absent.
    """

    name: str
    before: float | None
    after: float | None
    verdicts: tuple[str, str]


@dataclass(frozen=True, slots=True)
class ReportDifference:
    """What moved; every part is empty where nothing did.

    Attributes:
        verdict: of the whole, before and after; None if it is the same.
        stages: stage -> its verdict before and after; `absent` where a report has no such stage.
        rules: what was fixed before the run, by dotted key: limits, margins, repeats.
        measures: only those that moved.
        environment: versions and machine.
    """

    verdict: tuple[str, str] | None
    stages: dict[str, tuple[str, str]]
    rules: tuple[ValueDifference, ...]
    measures: tuple[MovedMeasure, ...]
    environment: tuple[ValueDifference, ...]


def compare_reports(before: Report, after: Report) -> ReportDifference:
    """Compare two reports, the earlier one first."""
    old, new = ({stage.name: stage.verdict for stage in one.stages} for one in (before, after))
    stages = {
        name: (old.get(name, "absent"), new.get(name, "absent"))
        for name in [*new, *(name for name in old if name not in new)]
        if old.get(name) != new.get(name)
    }
    return ReportDifference(
        verdict=None if before.verdict == after.verdict else (before.verdict, after.verdict),
        stages={str(name): verdicts for name, verdicts in stages.items()},
        rules=value_differences(before.rules.model_dump(mode="json"), after.rules.model_dump(mode="json")),
        measures=tuple(_moved(measures(before), measures(after))),
        environment=entry_differences(before.environment, after.environment),
    )


def measures(report: Report) -> dict[str, tuple[float, str]]:
    """Every number of a report that has a verdict: name -> (number, verdict).

    In the figures of a stage that is any object with a verdict and a number called `value` or `difference`; the stages
    need not be known here.
    """
    found: dict[str, tuple[float, str]] = {}
    for stage in report.stages:
        found |= dict(_measures(str(stage.name), stage.figures))
    for benchmark in report.benchmarks:
        found[f"{benchmark.task}: {benchmark.metric}, {benchmark.unit}"] = (benchmark.chip.value, benchmark.verdict)
    return found


def _measures(where: str, value: JsonValue) -> Iterator[tuple[str, tuple[float, str]]]:
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _measures(f"{where}: {_name(inner) or number}", inner)
    elif isinstance(value, Mapping):
        verdict, size = value.get("verdict"), value.get("value", value.get("difference"))
        if isinstance(verdict, str) and isinstance(size, int | float) and not isinstance(size, bool):
            yield where, (float(size), verdict)
        for key, inner in value.items():
            if isinstance(inner, list | Mapping):
                yield from _measures(where if isinstance(inner, list) else f"{where}: {key}", inner)


def _name(value: JsonValue) -> str:
    if not isinstance(value, Mapping):
        return ""
    words = [text for key in _NAMES if isinstance(text := value.get(key), str)]
    return ", ".join(words[:2])


def _moved(old: Mapping[str, tuple[float, str]], new: Mapping[str, tuple[float, str]]) -> Iterator[MovedMeasure]:
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if before != after:
            yield MovedMeasure(
                name,
                None if before is None else before[0],
                None if after is None else after[0],
                ("" if before is None else before[1], "" if after is None else after[1]),
            )

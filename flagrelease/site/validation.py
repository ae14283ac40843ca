"""What reports say of releases: the state of each chip's cell, without the figures, which are on the report's page."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from flagrelease.errors import VerificationError
from flagrelease.records.report import Report, Stage, parse_report
from flagrelease.site.states import State


@dataclass(frozen=True, slots=True)
class ChipState:
    """One release on one chip.

    Attributes:
        detail: one sentence of why the state is what it is.
        stages: of the report, without figures; empty without one.
        facts: of the report: tool, rules, machine.
        weights_proved: the weights were computed again from the source.
        anywhere: the rules let any device count, so that nothing is proved of the chip.
        report: the report's file; None without one.
    """

    chip: str
    state: State
    detail: str
    stages: tuple[Stage, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()
    weights_proved: bool = False
    anywhere: bool = False
    report: Path | None = None
    report_sha256: str | None = None


def chip_state(chip: str, path: Path, manifest_sha256: str) -> ChipState:
    """The state of a chip by the report at `path`, which need not exist."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ChipState(chip, "not-run", "No report: this release was not validated for this chip.")
    except OSError as error:
        return ChipState(chip, "unreadable", f"report.json cannot be read ({error.strerror}).")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        report = parse_report(content, path.name)
    except VerificationError as error:
        return ChipState(chip, "unreadable", f"{error}", report_sha256=sha256)
    if report.chip != chip:
        return ChipState(chip, "unreadable", f"report.json is of chip {report.chip}.", report_sha256=sha256)
    state, detail = _state(report, manifest_sha256)
    return ChipState(
        chip=chip,
        state=state,
        detail=detail,
        stages=tuple(stage.model_copy(update={"figures": {}}) for stage in report.stages),
        facts=tuple(_facts(report)),
        commands=report.commands,
        weights_proved=report.weights_proved and state != "stale",
        anywhere=report.rules.device == "any",
        report=path,
        report_sha256=sha256,
    )


def proved_without_report(state: ChipState, night: str) -> ChipState:
    """The same state, where the `verify` of a night has proved files and weights and no report says so."""
    detail = f"{state.detail} Its files and weights were proved by the run of {night}."
    return replace(state, detail=detail, weights_proved=True)


def _state(report: Report, manifest_sha256: str) -> tuple[State, str]:
    if report.manifest_sha256 != manifest_sha256:
        return "stale", (
            f"The report ({report.verdict}) is of manifest {report.manifest_sha256[:12]}, the release has "
            f"{manifest_sha256[:12]}: it was made again since. Validate it again."
        )
    if report.verdict == "pass":
        return "pass", f"Passed: {', '.join(report.rules.stages)}."
    by_verdict: dict[str, list[str]] = {}
    for stage in report.stages:
        by_verdict.setdefault(stage.verdict, []).append(stage.name)
    for benchmark in report.benchmarks:
        by_verdict.setdefault(benchmark.verdict, []).append(benchmark.task)
    if report.verdict == "fail":
        return "fail", f"Failed: {', '.join(by_verdict['fail'])}."
    asked = [name for name in by_verdict.get("not-run", []) if name in report.rules.stages]
    weak = by_verdict.get("not-informative", [])
    parts = [f"Not run: {', '.join(asked)}." if asked else ""]
    parts.append(f"Not informative: {', '.join(weak)}." if weak else "")
    parts.append(f"Cannot tell: {', '.join(by_verdict['cannot-tell'])}." if "cannot-tell" in by_verdict else "")
    only_weak = bool(weak) and not asked and "cannot-tell" not in by_verdict
    return "not-informative" if only_weak else "cannot-tell", " ".join(part for part in parts if part)


def _facts(report: Report) -> list[tuple[str, str]]:
    rules = report.rules
    where = "wherever it ran: it proves nothing of this chip" if rules.device == "any" else f"only on {rules.device}"
    return [
        ("Report of manifest", report.manifest_sha256),
        ("Figures", report.computed_where),
        ("Made by", f"{report.tool.name} {report.tool.version}"),
        ("A pass needs", ", ".join(rules.stages)),
        ("What is computed counts", where),
        *sorted(report.environment.items()),
    ]

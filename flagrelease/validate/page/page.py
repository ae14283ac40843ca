"""`render_page`: the report as one HTML document, drawn from the record alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flagrelease.page.panel import Panel, Table
from flagrelease.page.template import Templates, style
from flagrelease.records.computed_on import on_the_chip
from flagrelease.records.manifest import Manifest
from flagrelease.records.rates import say_rates
from flagrelease.records.report import Benchmark, Report, Score, Stage
from flagrelease.records.rules import StageName
from flagrelease.validate.page.behaviour_panels import behaviour_panels
from flagrelease.validate.page.benchmark_panels import benchmark_panels, forest_panel
from flagrelease.validate.page.forest import signed
from flagrelease.validate.page.invariance_panels import invariance_panels
from flagrelease.validate.page.key_figures import key_figure
from flagrelease.validate.page.logits_panels import logits_panels
from flagrelease.validate.page.long_context_panels import long_context_panels
from flagrelease.validate.page.preflight_panels import preflight_panels
from flagrelease.validate.page.weights_panels import check_panels

WORDS = {
    "pass": "Pass",
    "fail": "Fail",
    "cannot-tell": "Cannot tell",
    "not-informative": "Not informative",
    "not-run": "Not run",
}

_PANELS: dict[StageName, Callable[[Stage], list[Panel]]] = {
    "integrity": check_panels,
    "weights": check_panels,
    "preflight": preflight_panels,
    "logits": logits_panels,
    "invariance": invariance_panels,
    "long-context": long_context_panels,
    "benchmarks": lambda stage: [],  # drawn from the report's benchmarks
    "behaviour": behaviour_panels,
}


@dataclass(frozen=True, slots=True)
class ExamSection:
    """What the page shows of a benchmark; `scores` are (what, number, interval, rates)."""

    benchmark: Benchmark
    scores: tuple[tuple[str, str, str, str], ...]
    panels: tuple[Panel, ...]


def render_page(report: Report, manifest: Manifest) -> str:
    """Make the HTML document. It runs no script and requests nothing from a network."""
    panels = {stage.name: _PANELS[stage.name](stage) for stage in report.stages}
    panels["benchmarks"] = forest_panel(report.benchmarks)
    return Templates("flagrelease.validate.page").render(
        "report.html.jinja",
        report=report,
        words=WORDS,
        style=style(),
        model=manifest.model or "A checkpoint",
        release=_release(manifest),
        source=_source(manifest),
        summary=_summary(report),
        computed=_sentence(report.computed_where),
        on_chip=on_the_chip(report.computed_on or ()),
        panels=panels,
        keys={stage.name: key_figure(stage, report.benchmarks) for stage in report.stages},
        exams=[_exam(number, benchmark) for number, benchmark in enumerate(report.benchmarks)],
        identity=_identity(report, manifest),
        environment=_environment(report),
        rules=Table(("rule", "value"), _flat("", report.rules.model_dump(mode="json"))),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _summary(report: Report) -> str:
    """Explain the verdict in two sentences, and what was asked for if that was less than all."""
    if report.scope is None or report.scope.until is None or report.verdict != "cannot-tell":
        return _why(report)
    asked = {"pass": "passed", "cannot-tell": "has no verdict either", "fail": "failed"}[report.scope.verdict]
    return f"What was asked for, --until {report.scope.until}, {asked}. As a whole: {_why(report)}"


def _why(report: Report) -> str:
    ran = [stage.name for stage in report.stages if stage.verdict != "not-run"]
    if report.verdict == "pass":
        return f"Every stage that the rules ask for passed: {_listed(report.rules.stages)}."
    if report.verdict == "fail":
        failed = [stage for stage in report.stages if stage.verdict == "fail"]
        tasks = [benchmark.task for benchmark in report.benchmarks if benchmark.verdict == "fail"]
        return failed[0].detail if failed else f"{_listed(tasks)} failed."
    missing = [name for name in report.rules.stages if name not in ran]
    unclear = [stage.name for stage in report.stages if stage.verdict == "cannot-tell"]
    unclear_tasks = [benchmark.task for benchmark in report.benchmarks if benchmark.verdict == "cannot-tell"]
    parts = [f"Nothing that ran failed: {_listed(ran)}." if ran else "Nothing ran."]
    if blunt := [stage.name for stage in report.stages if stage.verdict == "not-informative"]:
        parts.append(f"Not informative, which is no pass: {_listed(blunt)}.")
    if missing:
        parts.append(f"The rules also ask for {_listed(missing)}, not run.")
    if without := [*(name for name in unclear if name != "benchmarks" or not unclear_tasks), *unclear_tasks]:
        parts.append(f"Without a verdict: {_listed(without)}.")
    return " ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def _exam(number: int, benchmark: Benchmark) -> ExamSection:
    scores = [("this release", *_score(benchmark.chip, benchmark.unit), say_rates(benchmark, "chip"))]
    if benchmark.native is not None:
        native = _score(benchmark.native, benchmark.unit)
        scores.append((f"native, {benchmark.native_stack}", *native, say_rates(benchmark, "native")))
        apart = f"{signed(benchmark.chip.value - benchmark.native.value)}"
        scores.append(("difference", apart, "points" if benchmark.unit == "%" else benchmark.unit, ""))
    return ExamSection(benchmark, tuple(scores), tuple(benchmark_panels(number, benchmark)))


def _score(score: Score, unit: str) -> tuple[str, str]:
    shown = f"{score.value:.2f}{unit}" if unit == "%" else f"{score.value:.4g} {unit}"
    return shown, f"{score.confidence:.0%} interval {score.low:.2f} to {score.high:.2f}"


def _identity(report: Report, manifest: Manifest) -> list[tuple[str, str]]:
    return [
        ("Model", manifest.model or "not named: a bare checkpoint was converted"),
        ("Chip", report.chip),
        ("Release", _release(manifest)),
        ("Manifest, SHA-256", report.manifest_sha256),
        ("Source", _source(manifest)),
        ("Source, identity", manifest.source.identity),
    ]


def _release(manifest: Manifest) -> str:
    target = manifest.target
    return f"{target.dtype}, {'hf' if target.mp is None else f'mp{target.mp}'}"


def _source(manifest: Manifest) -> str:
    source = manifest.source
    return f"{source.repo} at {(source.revision or 'no revision')[:12]}" if source.repo else "not recorded"


def _environment(report: Report) -> Table:
    seeds = [(f"seed: {name}", str(value)) for name, value in sorted(report.seeds.items())]
    return Table(("what", "version or value"), [*sorted(report.environment.items()), *seeds])


def _flat(prefix: str, value: object) -> list[tuple[str, ...]]:
    """List nested rules as (dotted name, value)."""
    if isinstance(value, dict):
        return [row for name, inner in value.items() for row in _flat(f"{prefix}.{name}" if prefix else name, inner)]
    shown = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return [(prefix, shown)]

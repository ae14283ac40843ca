"""Shows the report of a validation on a terminal: the verdict first, and where its figures were computed."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from flagrelease.console import out, table
from flagrelease.records.rates import say_rates
from flagrelease.records.report import Benchmark, Report, Score

_COLOURS = {"pass": "green", "fail": "red", "cannot-tell": "yellow", "not-informative": "magenta", "not-run": "dim"}
_WORDS = {
    "pass": "PASS", "fail": "FAIL", "cannot-tell": "CANNOT TELL", "not-informative": "NOT INFORMATIVE",
    "not-run": "not run",
}  # fmt: skip


def show_report(report: Report, release: Path, folder: Path) -> None:
    """Print the verdict, where the figures were computed, what each stage found, and where the whole record is."""
    console = out()
    console.print(f"[bold]{_coloured(report.verdict)}[/bold]  [bold]{escape(str(release))}[/bold] for {report.chip}")
    console.print(escape(report.computed_where))
    console.print()
    rows = table("stage", "", "what")
    for stage in report.stages:
        rows.add_row(stage.name, _coloured(stage.verdict), escape(stage.detail))
    console.print(rows)
    if report.benchmarks:
        console.print()
        console.print(_scores(report.benchmarks))
        console.print("Answers that are none:")
        for each in report.benchmarks:
            sides = [f"this release {say_rates(each, 'chip')}"]
            sides += [] if each.native is None else [f"native {say_rates(each, 'native')}"]
            console.print(f"  {escape(each.task)}: {'; '.join(sides)}")
    if said := _missing(report):
        console.print(f"\n{escape(said)}")
    console.print(
        f"\n{escape(str(folder / 'report.html'))} shows it; {escape(str(folder / 'report.json'))} is the record"
    )


def _scores(benchmarks: tuple[Benchmark, ...]) -> Table:
    scores = table("benchmark", "", ">native", ">this release", ">questions x answers")
    for each in benchmarks:
        native = "not run" if each.native is None else _score(each.native)
        asked = f"{each.n} x {each.repeats}"
        scores.add_row(escape(each.task), _coloured(each.verdict), native, _score(each.chip), asked)
    return scores


def _missing(report: Report) -> str:
    """What keeps a report from being a pass, and what was asked for where that was less than all."""
    if report.verdict != "cannot-tell":
        return ""
    said = []
    if report.scope is not None and report.scope.until is not None and report.scope.verdict == "pass":
        said.append(f"What was asked for passed (--until {report.scope.until}). It is no pass of the release:")
    for verdict, why in (("not-run", "No verdict without"), ("not-informative", "Nothing was learnt from")):
        named = [stage.name for stage in report.stages if stage.verdict == verdict]
        if wanted := [name for name in report.rules.stages if name in named]:
            said.append(f"{why} {', '.join(wanted)}: the rules ask for {'it' if len(wanted) == 1 else 'them'}.")
    return " ".join(said)


def _coloured(verdict: str) -> str:
    return f"[{_COLOURS[verdict]}]{_WORDS[verdict]}[/]"


def _score(score: Score) -> str:
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"

"""Shows the report of a validation on a terminal, the verdict first."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from flagrelease.console import out, table
from flagrelease.records.report import Report, Score

_COLOURS = {"pass": "green", "fail": "red", "cannot-tell": "yellow", "not-run": "dim"}
_WORDS = {"pass": "PASS", "fail": "FAIL", "cannot-tell": "CANNOT TELL", "not-run": "not run"}


def show_report(report: Report, release: Path, folder: Path) -> None:
    """Print the verdict, what each stage found, and where the whole record is."""
    console = out()
    verdict = f"[bold {_COLOURS[report.verdict]}]{_WORDS[report.verdict]}[/]"
    console.print(f"{verdict}  [bold]{escape(str(release))}[/bold] on {escape(report.chip)}")
    console.print()
    rows = table("stage", "", "what")
    for stage in report.stages:
        rows.add_row(stage.name, _coloured(stage.verdict), escape(stage.detail))
    console.print(rows)
    if report.benchmarks:
        console.print()
        scores = table("benchmark", "", ">native", ">this chip", ">questions x answers")
        for each in report.benchmarks:
            native = "not run" if each.native is None else _score(each.native)
            scores.add_row(
                escape(each.task), _coloured(each.verdict), native, _score(each.chip), f"{each.n} x {each.repeats}"
            )
        console.print(scores)
    not_run = [stage.name for stage in report.stages if stage.verdict == "not-run"]
    if report.verdict == "cannot-tell" and (wanted := [name for name in report.rules.stages if name in not_run]):
        console.print(f"\nNo verdict without {', '.join(wanted)}: the rules ask for them.")
    console.print(
        f"\n{escape(str(folder / 'report.html'))} shows it; {escape(str(folder / 'report.json'))} is the record"
    )


def _coloured(verdict: str) -> str:
    return f"[{_COLOURS[verdict]}]{_WORDS[verdict]}[/]"


def _score(score: Score) -> str:
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"

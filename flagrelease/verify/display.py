"""What `verify` found, for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from flagrelease.console import human_bytes, out, table
from flagrelease.verify.result import Finding, StackVerdict, VerifyReport

_SHOWN = 20  # lines of a list; --json has all of it


def show_verification(release: Path, report: VerifyReport) -> None:
    """Print a report as a table of checks and a list of findings."""
    console = out()
    colours = {"pass": "green", "fail": "red", "not-run": "yellow"}
    rows = table("check", "", ">checked", ">bytes", "what")
    for check in report.checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        rows.add_row(check.name, status, f"{check.checked:,}", human_bytes(check.bytes), escape(check.detail))
    console.print(rows)
    for check in report.checks:
        for finding in check.findings[:_SHOWN]:
            console.print(f"[red]{check.name}[/red]: {escape(_finding(finding))}")
        if check.failed > _SHOWN:
            console.print(f"[red]{check.name}[/red]: and {check.failed - _SHOWN} more")
    if report.stacks:
        console.print(
            "\nserving stacks, by their loaders replayed on the headers (* named by the recipe or by --stack):"
        )
    for one in report.stacks:
        console.print(escape(_stack(one)), highlight=False)
    sampled = f" (read {report.sample:.0%} of the weights)" if report.sample < 1 else ""
    console.print(f"\n[bold]{escape(str(release))}[/bold]: {_verdict(report)}{sampled}")


def _verdict(report: VerifyReport) -> str:
    failed = sum(check.status == "fail" for check in report.checks)
    if failed:
        return f"[red]verification FAILED, {failed} of {len(report.checks)} checks[/red]"
    if report.check("source").status == "pass":
        return "[green]proved: every weight that was read follows from the source[/green]"
    return "[green]intact: agrees with its manifest[/green]; --source CHECKPOINT proves the weights too"


def _stack(one: StackVerdict) -> str:
    needs = f" with {' '.join((*one.environment, *one.flags))}" if one.environment or one.flags else ""
    verdict = f"loads{needs}" if one.verdict == "loads with flags" else one.verdict
    why = f": {'; '.join(one.why)}" if one.why else ""
    return f"{'*' if one.named else ' '} {one.stack} ({one.version}) {verdict}{why}"


def _finding(finding: Finding) -> str:
    where = [str(part) for part in (finding.tensor, finding.file) if part is not None]
    if finding.row is not None:
        where.append(f"[{finding.row}, {finding.column}]")
    if finding.offset is not None:
        where.append(f"byte {finding.offset}")
    return f"{', '.join(where)}: {finding.rule}" if where else finding.rule

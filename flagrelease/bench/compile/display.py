"""What people see of `bench compile`: a table of operators by targets, in a terminal or for a page, and what failed."""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.bench.compile.matrix import Compiled, CompileReport
from flagrelease.bench.compile.record import CompiledLaunch
from flagrelease.console import out, table

LEGEND = (
    "kernels that compile; the most shared memory of one, in KiB; the most registers of a thread, and + where some of "
    "them lie in memory"
)


def cell(launches: tuple[CompiledLaunch, ...]) -> str:
    """`3; 45; 168`, or `2 of 3; 45; 168` where one cannot be given to the chip; empty where nothing is launched."""
    if not launches:
        return ""
    fit = [launch for launch in launches if launch.failure is None]
    count = str(len(fit)) if len(fit) == len(launches) else f"**{len(fit)} of {len(launches)}**"
    shared = [launch.shared for launch in fit if launch.shared is not None]
    used = [launch.registers for launch in fit if launch.registers is not None]
    spills = "+" if any(launch.spilled for launch in fit) else ""
    words = (count, f"{max(shared) / 1024:.3g}" if shared else "-", f"{max(used)}{spills}" if used else "-")
    return "; ".join(words) if fit else count


def failures(report: CompileReport) -> Iterator[tuple[str, str, str]]:
    """(target and Triton, reason, kernels with their operators), each reason once for each target."""
    for column in report.columns:
        found: dict[str, dict[str, None]] = {}
        for launch in column.failures:
            found.setdefault(launch.failure or "", {})[f"{launch.operator} ({launch.kernel})"] = None
        for reason, kernels in sorted(found.items()):
            yield _name(column), reason, ", ".join(kernels)


def show_compiled(report: CompileReport) -> None:
    """Print the report on stdout."""
    title = f"{report.request.dimensions} dimensions, {', '.join(report.request.numerics)} numerics: {LEGEND}"
    rows = table("operator", *map(_name, report.columns), title=title)
    for operator in report.operators:
        rows.add_row(operator, *(cell(column.of(operator)).replace("**", "") for column in report.columns))
    out().print(rows)
    for where, reason, kernels in failures(report):
        out().print(f"{where}: {reason}: {kernels}", markup=False)


def markdown(report: CompileReport) -> str:
    """The same for a page."""
    names = ["operator", *map(_name, report.columns)]
    lines = [f"Each cell: {LEGEND}.", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for operator in report.operators:
        cells = (cell(column.of(operator)) for column in report.columns)
        lines.append(f"| {' | '.join((operator, *cells))} |")
    failed = list(failures(report))
    if failed:
        lines += ["", "| target | why not | operators and kernels |", "|---|---|---|"]
        lines += [f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in failed]
    return "\n".join(lines) + "\n"


def _name(column: Compiled) -> str:
    return f"{column.target}, {column.triton}"

"""What people see of `bench kernels`: a table."""

from __future__ import annotations

from flagrelease.bench.kernels import KernelReport
from flagrelease.console import human_number, out, table


def show_kernels(report: KernelReport) -> None:
    """Print the report on stdout: microseconds, a column for each provider, and the floor of the bytes."""
    names = list(dict.fromkeys(name for row in report.rows for name in row.seconds))
    title = f"{report.request.name} dimensions, {report.circumstances.device}: microseconds"
    rows = table("operator", "of", ">tokens", *(f">{name}" for name in names), ">floor", title=title)
    rows.columns[0].no_wrap = True  # where the terminal is narrow, what an operator is of breaks between its words
    for row in report.rows:
        times = (human_number(row.seconds[name] * 1e6) if name in row.seconds else "" for name in names)
        rows.add_row(row.operator, row.what, str(row.tokens), *times, f"{row.floor * 1e6:.3g}")
    out().print(rows)
    out().print(f"floor: bytes over the copy bandwidth measured here, {report.copy_bandwidth / 1e12:.3g} TB/s")
    out().print(f"calls, all but torch's: {report.calls}")
    for name, reason in report.absent.items():
        out().print(f"{name} is not among them: {reason}")

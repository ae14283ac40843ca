"""What people see of `bench engine`: a table, and a drawing of each row beside its roof."""

from __future__ import annotations

from html import escape

from rich.table import Table

from flagrelease.bench.engine import EngineReport, EngineRow
from flagrelease.console import human_bytes, human_number, out, table

_WIDTH, _BAR, _GAP, _LEFT = 720, 18, 8, 160  # of the drawing, in pixels


def show_engine(report: EngineReport) -> None:
    """Print the report as a table on stdout."""
    request, rates, several = report.request, report.rates, len(report.matrix_rates) > 1
    rows = table(
        "phase", ">size", ">context", ">time", *([">collectives"] if several else []), ">tokens/s",
        ">must move or compute", ">roof, tokens/s", ">share",
        title=f"{request.name} dimensions, {request.numerics} numerics, {request.operators} operators, "
        f"{_devices(report)}",
    )  # fmt: skip
    for row in report.rows:
        needed = human_bytes(row.needed) if row.phase == "decode" else f"{human_number(row.needed / 1e12)} Tops"
        rows.add_row(
            row.phase, str(row.size), str(row.context) if row.context else "-", f"{human_number(row.seconds * 1e3)} ms",
            *([f"{row.collectives * 1e3:.3g} ms"] if several else []), human_number(row.rate), needed,
            human_number(row.roof),
            f"{row.share:.0%}",
        )  # fmt: skip
    out().print(rows)
    if report.drafts:
        out().print(_drafts(report))
        out().print(
            "The weights are random, so how many drafts are right means nothing: `bench serve` and `generate` tell it "
            "of a trained model."
        )
    said = f"copy {rates.copy_bandwidth / 1e12:.3g} TB/s, BF16 product {rates.matrix_rate / 1e12:.3g} Tops/s"
    if several:
        said += " by the slowest device; bytes and operations are of the rank that has most"
    out().print(f"chunk {request.chunk}; measured here: {said}; decoding {report.decoding}")
    for room in report.rooms:
        out().print(f"a sequence of {room.context} tokens takes {human_bytes(room.bytes)}: {room.fit} fit")
    for text in report.left_out:
        out().print(f"not measured: {text}")


def _drafts(report: EngineReport) -> Table:
    """What speculation costs beside plain steps."""
    rows = table(
        ">size", ">context", ">drafts", ">step", ">verify", ">draft", ">of a step", ">must be right",
        title=f"drafts of {report.request.drafts} stages: what they cost, whatever they say",
    )  # fmt: skip
    for row in report.drafts:
        times = (f"{each * 1e3:.3g} ms" for each in (row.step, row.verify, row.draft))
        rows.add_row(
            str(row.size), str(row.context), str(row.drafts), *times, f"{row.ratio:.2f} x", f"{row.break_even:.2f}"
        )
    return rows


def plot_engine(report: EngineReport) -> str:
    """SVG: a bar a row, as long as its share of the roof."""
    title = escape(f"{report.request.name} dimensions, {_devices(report)}: share of the roof")
    height = len(report.rows) * (_BAR + _GAP) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">',
        f'<text x="4" y="16">{title}</text>',
        *(_bar(row, 28 + index * (_BAR + _GAP)) for index, row in enumerate(report.rows)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _devices(report: EngineReport) -> str:
    count = len(report.matrix_rates)
    return f"{count} x {report.circumstances.device}" if count > 1 else report.circumstances.device


def _bar(row: EngineRow, y: int) -> str:
    room = _WIDTH - _LEFT - 150
    text, of = y + _BAR - 5, f" of {row.context}" if row.context else ""
    return (
        f'<text x="4" y="{text}">{escape(row.phase)} {row.size}{of}</text>'
        f'<rect x="{_LEFT}" y="{y}" width="{room}" height="{_BAR}" fill="#eee"/>'
        f'<rect x="{_LEFT}" y="{y}" width="{room * min(1.0, row.share):.1f}" height="{_BAR}" fill="#2b6cb0"/>'
        f'<text x="{_LEFT + room + 6}" y="{text}">{human_number(row.rate)} tokens/s, {row.share:.0%}</text>'
    )

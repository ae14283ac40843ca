"""The texts of `inspect`, `plan`, `convert` and `verify` for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from flagrelease.console import human_bytes, out, table
from flagrelease.convert.inspect import Inspection
from flagrelease.convert.summary import ReleaseSummary, Summary
from flagrelease.records.manifest import Manifest
from flagrelease.verify.result import Finding, VerifyReport

_SHOWN = 20  # lines of a list; the rest is counted, and whole in --json


def show_inspection(found: Inspection) -> None:
    """What `inspect` found."""
    console = out()
    stages = f", {found.mtp_stages} {'DSpark' if found.dspark else 'MTP'} stage(s)" if found.mtp_stages else ""
    layers = ", ".join(f"{count} {kind}" for kind, count in found.layers.items())
    block = "x".join(map(str, found.block_size)) if found.block_size else "none"
    console.print(f"[bold]{escape(found.folder)}[/bold]: DeepSeek-V4, {sum(found.layers.values())} layers{stages}")
    console.print(f"  layers   {layers}")
    console.print(f"  experts  {found.experts} a layer, {found.experts_per_token} for a token")
    console.print(f"  weights  {found.logical_elements:,} elements in {found.tensors:,} tensors, {found.files} files")
    console.print(f"  bytes    {found.bytes:,} ({human_bytes(found.bytes)}); FP8 blocks {block}")
    for title, tallies in (("format", found.formats), ("scale dtype", found.scales), ("stored dtype", found.dtypes)):
        rows = table(title, ">tensors", ">bytes", ">")
        for name, tally in tallies.items():
            rows.add_row(name, f"{tally.tensors:,}", f"{tally.bytes:,}", human_bytes(tally.bytes))
        console.print()
        console.print(rows)
    console.print()
    if not found.problems:
        console.print("[green]config, index and headers agree[/green]")
        return
    console.print(f"[red]{len(found.problems)} disagreement(s):[/red]")
    for problem in found.problems[:_SHOWN]:
        console.print(f"  {escape(problem)}")
    if len(found.problems) > _SHOWN:
        console.print(f"  and {len(found.problems) - _SHOWN} more (--json has them all)")


def show_plan(plan: Summary) -> None:
    """What `plan` computed."""
    console = out()
    console.print(
        f"[bold]{escape(plan.source)}[/bold]: {plan.source_tensors:,} tensors, {human_bytes(plan.source_bytes)}"
    )
    rows = table("release", ">files", ">tensors", ">bytes", ">", ">largest file", "hubs")
    for release in plan.releases:
        rows.add_row(
            release.folder, f"{len(release.files)}", f"{release.tensors:,}", f"{release.bytes:,}",
            human_bytes(release.bytes), human_bytes(release.largest_file.bytes), _hubs(release),
        )  # fmt: skip
    console.print(rows)
    reread = plan.bytes_to_read / plan.source_bytes
    console.print()
    console.print(f"read    {human_bytes(plan.bytes_to_read)} ({reread:.2f} times the source)")
    console.print(f"write   {human_bytes(plan.bytes_to_write)}, all of it free on the disk at once")
    console.print(f"memory  {human_bytes(plan.peak_memory_bytes)} for {plan.workers} workers, beside the interpreter")
    for release in plan.releases:
        _show_cards(release)
    for problem in plan.hub_problems[:_SHOWN]:
        console.print(f"[red]{escape(problem)}[/red]")


def _hubs(release: ReleaseSummary) -> str:
    return ", ".join(hub if not problems else f"not {hub}" for hub, problems in release.hubs.items())


def _show_cards(release: ReleaseSummary) -> None:
    if not release.cards:
        return
    rows = table("chip", ">a card", ">weights a card", "", title=f"\n{release.folder} on its chips")
    for card in release.cards:
        verdict = "[green]fits[/green]" if card.fits else f"[red]does not fit[/red]; {_need(card.smallest_mp)}"
        if not card.hardware:
            lacks = {"fp8": "FP8", "native": "FP4"}[release.dtype]
            verdict += f"; [yellow]{'no' if card.hardware is False else 'unknown whether it has'} {lacks}[/yellow]"
        name = f"[bold]{card.chip}[/bold]" if card.asked else card.chip
        rows.add_row(name, f"{card.card_bytes >> 30} GiB", f"{card.weight_bytes / 2**30:.1f} GiB", verdict)
    out().print(rows)


def _need(smallest_mp: int | None) -> str:
    return "no number of ranks does" if smallest_mp is None else f"needs mp{smallest_mp}"


def show_releases(folder: Path, manifests: dict[str, Manifest]) -> None:
    """What `convert` wrote."""
    rows = table("release", ">files", ">bytes", ">", "elements")
    for name, manifest in manifests.items():
        size = sum(file.size for file in manifest.files)
        counts = manifest.elements.model_dump()
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        rows.add_row(name, f"{len(manifest.files)}", f"{size:,}", human_bytes(size), kinds)
    out().print(f"[bold]{escape(str(folder))}[/bold]")
    out().print(rows)


def show_verification(release: Path, report: VerifyReport) -> None:
    """What `verify` found."""
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
    sampled = f" (data of a {report.sample:.0%} sample)" if report.sample < 1 else ""
    verdict = "[green]proved[/green]" if report.passed else "[red]NOT what it says[/red]"
    console.print(f"\n[bold]{escape(str(release))}[/bold]: {verdict}{sampled}")


def _finding(finding: Finding) -> str:
    where = [str(part) for part in (finding.tensor, finding.file) if part is not None]
    if finding.row is not None:
        where.append(f"[{finding.row}, {finding.column}]")
    if finding.offset is not None:
        where.append(f"byte {finding.offset}")
    return f"{', '.join(where)}: {finding.rule}" if where else finding.rule

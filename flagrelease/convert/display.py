"""What `inspect`, `plan` and `convert` found or did, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from flagrelease.console import human_bytes, out, say, table

if TYPE_CHECKING:
    from flagrelease.convert.inspect import Inspection
    from flagrelease.convert.summary import DiskSummary, ReleaseSummary, SequenceSummary, Summary
    from flagrelease.records.manifest import Manifest

_SHOWN = 20  # lines of a list; --json has all of it


def show_inspection(found: Inspection) -> None:
    """What `inspect` found."""
    console = out()
    stages = f", {found.mtp_stages} {'DSpark' if found.dspark else 'MTP'} stage(s)" if found.mtp_stages else ""
    layers = ", ".join(f"{count} {kind}" for kind, count in found.layers.items())
    block = "x".join(map(str, found.block_size)) if found.block_size else "none"
    console.print(f"[bold]{escape(found.folder)}[/bold]: {found.family}, {sum(found.layers.values())} layers{stages}")
    console.print(f"  layers   {layers}")
    drafting = f"; {found.draft_experts} a draft stage" if found.draft_experts not in (0, found.experts) else ""
    console.print(f"  experts  {found.experts} a layer, {found.experts_per_token} for a token{drafting}")
    console.print(f"  weights  {found.logical_elements:,} elements in {found.tensors:,} tensors, {found.files} files")
    console.print(f"  bytes    {found.bytes:,} ({human_bytes(found.bytes)}); FP8 blocks {block}")
    for title, tallies in (("format", found.formats), ("scale dtype", found.scales), ("stored dtype", found.dtypes)):
        rows = table(title, ">tensors", ">bytes", ">")
        for name, tally in tallies.items():
            rows.add_row(name, f"{tally.tensors:,}", f"{tally.bytes:,}", human_bytes(tally.bytes))
        console.print()
        console.print(rows)
    console.print()
    for line in remark_lines(found.left_out, found.remarks):
        console.print(escape(line))
    if not found.problems:
        console.print("[green]config, index and headers agree[/green]")
        return
    console.print(f"[red]{len(found.problems)} disagreement(s):[/red]")
    for problem in found.problems[:_SHOWN]:
        console.print(f"  {escape(problem)}")
    if len(found.problems) > _SHOWN:
        console.print(f"  and {len(found.problems) - _SHOWN} more (--json has them all)")


def remark_lines(left_out: dict[str, str], remarks: Sequence[str]) -> list[str]:
    """What people should know of a source that is not refused for it, a line each."""
    return [f"left out of every release: {name} ({reason})" for name, reason in left_out.items()] + [
        f"note: {remark}" for remark in remarks
    ]


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
    for release in plan.releases:
        if release.drafts == "drop":
            console.print(f"{release.folder} leaves out the draft stages of the model (mtp.*)")
    reread = plan.bytes_to_read / plan.source_bytes
    console.print()
    console.print(f"read    {human_bytes(plan.bytes_to_read)} ({reread:.2f} times the source)")
    short = plan.disk_free_bytes < plan.peak_disk_bytes
    free = f"{human_bytes(plan.disk_free_bytes)} free at {escape(plan.disk)}" + (": NOT ENOUGH" if short else "")
    console.print(f"write   {human_bytes(plan.bytes_to_write)}; {f'[red]{free}[/red]' if short else free}")
    if plan.passes is not None:
        _show_passes(plan.passes)
    if plan.parts is not None:
        from flagrelease.convert.sharing.summary import show_parts

        show_parts(plan.parts, plan.source_bytes)
    console.print(f"memory  {human_bytes(plan.peak_memory_bytes)} for {plan.workers} workers, beside the interpreter")
    for note in plan.notes:
        console.print(escape(note))
    for line in remark_lines(plan.left_out, plan.remarks):
        console.print(escape(line))
    for release in plan.releases:
        _show_cards(release)
    for release in plan.releases:
        _show_stacks(release)
    if any(release.cards for release in plan.releases):
        console.print(
            "\nleft: beside weights and 4 GiB for the runtime. context: tokens of the longest sequence whose caches "
            "fit there. x 4k: how many sequences of 4,096 tokens fit there together"
        )
    _show_sequences(plan)
    for problem in (*plan.stack_problems, *plan.hub_problems)[:_SHOWN]:
        console.print(f"[red]{escape(problem)}[/red]")


def _show_passes(disk: DiskSummary) -> None:
    """The order of work under `--disk`, a line a pass; a long one is cut in the middle."""
    console = out()
    console.print(
        f"disk    {disk.peak_bytes:,} bytes ({human_bytes(disk.peak_bytes)}) at most, of {disk.budget_bytes:,}; the "
        f"least budget is {disk.least_bytes:,}, records take up to {human_bytes(disk.record_bytes)} of it"
    )
    rows = table(">pass", ">files", ">bytes", ">", ">source read", "which", title="\nwritten, handed over and deleted")
    shown = len(disk.passes) if len(disk.passes) <= _SHOWN else _SHOWN - 1
    for number, one in enumerate(disk.passes[:shown], start=1):
        which = one.files[0] if len(one.files) == 1 else f"{one.files[0]} .. {one.files[-1]}"
        read = human_bytes(one.bytes_to_read)
        rows.add_row(
            f"{number}", f"{len(one.files)}", f"{one.bytes:,}", human_bytes(one.bytes), read, escape(which)
        )  # fmt: skip
    console.print(rows)
    if shown < len(disk.passes):
        console.print(f"  and {len(disk.passes) - shown} more passes (--json has them all)")


def _hubs(release: ReleaseSummary) -> str:
    return ", ".join(hub if not problems else f"not {hub}" for hub, problems in release.hubs.items())


def _show_cards(release: ReleaseSummary) -> None:
    """The chips that get the release; all, if it is for none of them."""
    if not release.cards:
        return
    asked = [card for card in release.cards if card.asked]
    lengths = [f">x {_length(each.context)}" for each in release.sequences]
    rows = table("chip", ">nodes x cards", ">GiB a card", ">weights", ">left", ">context", *lengths, "",
                 title=f"\n{release.folder} on {'its' if asked else 'all'} chips")  # fmt: skip
    for card in asked or release.cards:
        verdict = "[green]fits[/green]" if card.fits else f"[red]does not fit[/red]; {_need(card.smallest_mp)}"
        if not card.hardware:
            lacks = {"fp8": "FP8", "native": "FP4"}[release.dtype]
            verdict += f"; [yellow]{'no' if card.hardware is False else 'unknown whether it has'} {lacks}[/yellow]"
        rows.add_row(
            card.chip, f"{card.nodes} x {card.cards // card.nodes}", f"{card.card_bytes >> 30}",
            f"{card.weight_bytes / 2**30:.1f}", f"{card.left_bytes / 2**30:.1f}",
            f"{card.context:,}",
            *(f"{count:,}" for count in card.fit), verdict,
        )  # fmt: skip
    out().print(rows)


def _show_sequences(plan: Summary) -> None:
    """What a sequence takes, once for all releases in which it takes the same."""
    folders: dict[tuple[SequenceSummary, ...], list[str]] = {}
    for release in plan.releases:
        folders.setdefault(tuple(release.sequences), []).append(release.folder)
    for sequences, names in folders.items():
        sizes = ", ".join(f"{human_bytes(each.bytes)} for {each.context:,} tokens" for each in sequences)
        out().print(
            f"{escape(', '.join(names))}: the caches of a sequence in flagrelease's engine take {sizes}, on every card"
        )


def _length(tokens: int) -> str:
    """A power of two as people call it: 4k, 128k, 1M."""
    return f"{tokens >> 20}M" if tokens >= 1 << 20 else f"{tokens >> 10}k"


_VERDICTS = {
    "loads": "green",
    "loads with flags": "green",
    "silently wrong": "red",
    "refused": "red",
    "unknown": "yellow",
}


def _show_stacks(release: ReleaseSummary) -> None:
    """What each stack makes of the release, by the replay of its loader and what is known of it."""
    if not release.stacks:
        return
    rows = table("stack", "chips", "", "how it is known", "", title=f"\n{release.folder} and the serving stacks")
    for one in release.stacks:
        name = f"[bold]{escape(one.stack)}[/bold]" if one.asked else escape(one.stack)
        needs = " ".join([*one.environment, *one.flags])
        detail = needs or ("" if one.verdict == "loads" else "; ".join(one.why))
        colour = _VERDICTS[one.verdict]
        rows.add_row(name, ", ".join(one.chips), f"[{colour}]{one.verdict}[/{colour}]", one.mark, escape(detail))
    out().print(rows)


def _need(smallest_mp: int | None) -> str:
    return "no number of ranks does" if smallest_mp is None else f"needs mp{smallest_mp}"


def releases_document(folder: Path, manifests: dict[str, Manifest], before: list[str]) -> dict[str, Any]:
    """What `convert --json` prints. `before` names the releases that were complete already."""
    return {
        "out": str(folder),
        "releases": {
            name: {
                "plan": manifest.plan,
                "target": manifest.target.model_dump(mode="json"),
                "files": len(manifest.files),
                "bytes": sum(file.size for file in manifest.files),
                "elements": manifest.elements.model_dump(mode="json"),
                "complete_before": name in before,
            }
            for name, manifest in manifests.items()
        },
    }


def show_releases(folder: Path, manifests: dict[str, Manifest], before: list[str], recipe: bool) -> None:
    """What `convert` wrote. `before` names the releases that were complete already; `recipe`: they name a recipe."""
    rows = table("release", ">files", ">bytes", ">", "elements")
    for name, manifest in manifests.items():
        size = sum(file.size for file in manifest.files)
        counts = manifest.elements.model_dump()
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        rows.add_row(name, f"{len(manifest.files)}", f"{size:,}", human_bytes(size), kinds)
    out().print(f"[bold]{escape(str(folder))}[/bold]")
    out().print(rows)
    if before:
        out().print(f"{', '.join(before)}: complete already, nothing was written")
        say(
            "the source was compared with them by headers, small tensors and samples of the others; "
            "`flagrelease verify RELEASE --source CHECKPOINT` compares every byte."
        )
    if not recipe:
        out().print(
            "These releases name no recipe, because none was given. verify, validate, generate and serve take them as "
            "they are; publish needs --recipe FILE, a recipe that asks for the same bytes."
        )

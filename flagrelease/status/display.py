"""`FolderStatus` as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from flagrelease import console
from flagrelease.status.folder import ChipState, FolderStatus, ReleaseState
from flagrelease.status.parts import PartState
from flagrelease.status.unfinished import Progress

_COLOURS = {"complete": "green", "pass": "green", "unfinished": "yellow", "cannot-tell": "yellow", "missing": "dim"}


def show_status(found: FolderStatus) -> None:
    """A table of the folders, one of chips and releases, and what belongs to nothing."""
    out = console.out()
    if not found.releases:
        out.print(f"{found.folder}: no release, finished or not", markup=False)
    else:
        table = console.table("release", "model", ">size", "conversion")
        for state in found.releases:
            size = "-" if state.bytes is None else console.human_bytes(state.bytes)
            table.add_row(state.name, state.model or "-", size, _conversion(state))
        out.print(table)
    if found.parts:
        _show_parts(found.parts)
    if found.chips:
        rows = console.table("chip", "release", "converted", "validated", "weights", "published", "missing")
        for one in found.chips:
            rows.add_row(*map(_cell, _cells(one)))
        out.print()
        out.print(rows)
    parts = ", ".join(found.baseline) or "none"
    out.print(f"\nbaseline: {parts}", markup=False)
    for remark in found.remarks:
        out.print(f"- {remark}", markup=False)


def _cells(one: ChipState) -> tuple[str, ...]:
    proved = "proved" if one.weights_proved else "-"
    published, missing = "; ".join(one.published) or "-", ", ".join(one.missing) or "nothing"
    return one.chip, one.release, one.conversion, _validation(one), proved, published, missing


def _validation(one: ChipState) -> str:
    if one.validation != "unfinished":
        return one.validation
    return f"unfinished ({', '.join(one.stages) or 'no stage'} done)"


def _cell(text: str) -> str:
    colour = _COLOURS.get(text)
    return escape(text) if colour is None else f"[{colour}]{escape(text)}[/]"


def _conversion(state: ReleaseState) -> str:
    if state.problem is not None:
        return escape(f"damaged: {state.problem}")
    if state.progress is None:
        return _cell(state.conversion)
    kind = "unfinished" if state.progress.place is None else f"handed over to {state.progress.place}"
    return escape(f"{kind}: {_how_far(state.progress)}")


def _show_parts(parts: Sequence[PartState]) -> None:
    """Which parts are finished, and what is to be done next."""
    rows = console.table("part", "releases", "state")
    for one in parts:
        far = "" if one.progress is None or one.state == "finished" else f": {_how_far(one.progress)}"
        rows.add_row(one.part, escape(", ".join(one.releases)) or "-", escape(f"{one.state}{far}"))
    out = console.out()
    out.print()
    out.print(rows)
    open_parts = [one.part for one in parts if one.state != "finished"]
    if open_parts:
        out.print(f"still to be finished, each by convert --part: {', '.join(open_parts)}", markup=False)
    else:
        out.print("all parts are finished: convert --merge makes the releases of them", markup=False)


def _how_far(done: Progress) -> str:
    of = "" if done.total is None else f" of {console.human_bytes(done.total)}"
    share = "" if done.share is None else f" ({done.share:.0%})"
    now = {True: "a process works on it", False: "nobody works on it", None: "whether anybody works on it is unknown"}
    return f"{console.human_bytes(done.written)}{of}{share} written; {now[done.working]}"

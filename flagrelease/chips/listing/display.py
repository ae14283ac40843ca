"""The rows of `find_your_chip` as tables, as a document, and as the table of README.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from flagrelease import console
from flagrelease.chips.listing.rows import ChipRow, Need, find_your_chip, rows_of, state_words
from flagrelease.chips.stacks import OUR_FORMS, ServingStack, load_stacks, stacks_of
from flagrelease.chips.table import Chip, load_chips

_KNOWN = {"verified": "read in its source", "stated": "by its makers' word", "inferred": "concluded, not tried"}


def document(chip: Chip | None) -> dict[str, Any]:
    """All chips, or one with its row of the chip table: what `--json` prints."""
    rows = find_your_chip() if chip is None else rows_of(chip.id)
    stacks = load_stacks().values() if chip is None else stacks_of(chip.id)
    found: dict[str, Any] = {
        "releases": [asdict(row) for row in rows],
        "stacks": [_stack(stack) for stack in stacks],
    }
    if chip is None:
        found["chips"] = {name: _brief(one) for name, one in load_chips().items()}
    else:
        found["chip"] = chip.model_dump(mode="json")
    return found


def _brief(chip: Chip) -> dict[str, Any]:
    keys = {"vendor", "aliases", "torch_device", "dist_backend", "smi", "fp8", "fp4", "products", "other_products"}
    return chip.model_dump(mode="json", include=keys)


def _stack(stack: ServingStack) -> dict[str, Any]:
    forms = {form: stack.by_form[form].verdict for form in OUR_FORMS}
    keys = {"id", "title", "version", "chips", "product", "layouts"}
    return stack.model_dump(mode="json", include=keys) | {"forms": forms}


def show_all() -> None:
    """Two tables: the releases of all chips, and what the stacks load."""
    rows = console.table("chip", "product", "release", "made for", ">Flash", ">cards", ">Pro", ">cards", "state")
    for row in find_your_chip():
        rows.add_row(
            row.chip, row.product, row.format, row.stack, *_size(row.flash), *_size(row.pro), _states(row.needs)
        )
    console.out().print(rows)
    console.out().print(
        "\n`flagrelease chips CHIP` has the commands. Cards are the fewest whose memory holds the weights."
    )
    _show_stacks(load_stacks().values())


def _size(need: Need | None) -> tuple[str, str]:
    if need is None:
        return "-", "-"
    nodes = "" if need.nodes == 1 else f" ({need.nodes} nodes)"
    return console.human_bytes(need.bytes), f"{need.cards}{nodes}"


def _states(needs: Iterable[Need]) -> str:
    return ", ".join(dict.fromkeys(state_words(need) for need in needs))


def _show_stacks(stacks: Iterable[ServingStack]) -> None:
    table = console.table("stack", "version", "chips", "loads", "not known", "answers nonsense with")
    for stack in stacks:
        forms = {verdict: [form for form in OUR_FORMS if stack.by_form[form].verdict == verdict]
                 for verdict in ("loads", "unknown", "wrong")}  # fmt: skip
        cells = (", ".join(forms[verdict]) or "-" for verdict in ("loads", "unknown", "wrong"))
        table.add_row(stack.id, stack.version, ", ".join(stack.chips), *cells)
    console.out().print()
    console.out().print(table)


def show_chip(chip: Chip) -> None:
    """One chip: what it is, its releases with their commands, the stacks that serve it."""
    out = console.out()
    products = ", ".join(f"{one.name} ({one.memory_gib} GiB, {one.cards_per_node} a node)" for one in chip.products)
    hardware = {True: "in hardware", False: "not in hardware", None: "unknown"}
    out.print(f"[bold]{chip.id}[/]: {chip.vendor} {products}")
    out.print(
        f"torch device {chip.torch_device}, {chip.dist_library}; FP8 {hardware[chip.fp8]}, FP4 {hardware[chip.fp4]}"
    )
    out.print(
        f"the vendor's tool is `{chip.smi}`; `flagrelease doctor --chip {chip.id}` looks at this machine", markup=False
    )
    for row in rows_of(chip.id):
        out.print(f"\n[bold]{row.format}[/] for {row.stack_title} ({row.stack_version}), on {row.product}: {row.words}")
        out.print(f"  the stack {_verdict(row)} it, {_KNOWN[row.mark]}", markup=False)
        for need in row.needs:
            _show_need(need)
    _show_stacks(stacks_of(chip.id))
    for note in chip.notes:
        out.print(f"- {note}", markup=False)


def _verdict(row: ChipRow) -> str:
    return {"loads": "loads", "unknown": "may load", "wrong": "misreads", "refused": "refuses"}[row.verdict]


def _show_need(need: Need) -> None:
    out = console.out()
    nodes = f"{need.nodes} node{'s' if need.nodes > 1 else ''}"
    out.print(
        f"  {need.model}: {need.release}, {console.human_bytes(need.bytes)}, {need.cards} cards on {nodes}, "
        f"{console.human_bytes(need.card_bytes)} of weights a card; {state_words(need)}",
        markup=False,
    )
    if need.progress is not None:
        out.print(f"    {need.progress}", markup=False)
    out.print(f"    convert: {need.convert}", markup=False)
    out.print(f"    start:   {need.start}", markup=False)


def markdown_table() -> str:
    """The table of README.md: a row for each release of each chip, commands for V4-Flash."""
    lines = [
        "| chip | release | V4-Flash | V4-Pro | convert | start | serving stack | state |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in find_your_chip():
        first = row.needs[0]
        cells = [
            f"{row.chip}: {row.vendor} {row.product}",
            f"`{first.release}`",
            _cell(row.flash),
            _cell(row.pro),
            f"`{first.convert}`",
            f"`{first.start}`",
            f"{row.stack_title}: {_verdict(row)} it, {_KNOWN[row.mark]}",
            _states(row.needs),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def _cell(need: Need | None) -> str:
    if need is None:
        return "-"
    nodes = f"{need.nodes} node{'s' if need.nodes > 1 else ''}"
    return f"{console.human_bytes(need.bytes)}, {need.cards} cards, {nodes}"

"""The rows of `find_your_chip` as tables on a terminal, and as a document."""

from __future__ import annotations

from collections import Counter
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
    rows = console.table("chip", "release", "made for", ">Flash", ">cards", ">Pro", ">cards")
    for row in find_your_chip():
        release = row.format if row.v41_flash is None else f"V4.1 {row.format}"
        rows.add_row(row.chip, release, row.stack, *_size(row.flash or row.v41_flash), *_size(row.pro))
    states = Counter(state_words(need) for row in find_your_chip() for need in row.needs)
    out = console.out()
    out.print(rows)
    out.print(f"\n{', '.join(f'{count} {state}' for state, count in states.items())}.", end=" ")
    out.print(
        "Cards (nodes) are the fewest whose memory holds the weights, or as many as the stack's own command takes. "
        "`flagrelease chips CHIP` has the commands.\n"
    )
    stacks = console.table("stack", "chips", "loads")
    for stack in load_stacks().values():
        chips = "all" if set(stack.chips) == set(load_chips()) else ", ".join(stack.chips)
        stacks.add_row(stack.id, chips, _forms(stack, "loads"))
    out.print(stacks)


def _size(need: Need | None) -> tuple[str, str]:
    if need is None:
        return "-", "-"
    return console.human_bytes(need.bytes), f"{need.cards} ({need.nodes})"


def _forms(stack: ServingStack, verdict: str) -> str:
    return ", ".join(form for form in OUR_FORMS if stack.by_form[form].verdict == verdict) or "-"


def _show_stacks(stacks: Iterable[ServingStack]) -> None:
    table = console.table("stack", "loads", "not known", "answers nonsense with")
    for stack in stacks:
        table.add_row(stack.id, *(_forms(stack, verdict) for verdict in ("loads", "unknown", "wrong")))
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
        out.print(f"  the stack {verdict_words(row)} it, {known_words(row)}", markup=False)
        for need in row.needs:
            _show_need(need)
    _show_stacks(stacks_of(chip.id))
    for note in chip.notes:
        out.print(f"- {note}", markup=False)


def known_words(row: ChipRow) -> str:
    """How well it is known whether the stack loads the release."""
    return _KNOWN[row.mark]


def verdict_words(row: ChipRow) -> str:
    """What the stack does with the release, as a verb."""
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

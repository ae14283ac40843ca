"""The rows of `find_your_chip` in Markdown: README.md's table, and docs/quickstart.md with each chip's commands."""

from __future__ import annotations

from flagrelease import console
from flagrelease.chips.listing.display import known_words, verdict_words
from flagrelease.chips.listing.rows import Need, find_your_chip, rows_of, state_words
from flagrelease.chips.table import Chip, load_chips

_QUICKSTART = "docs/quickstart.md"


def readme_table() -> str:
    """A row for each release of each chip; the chip is a link to its section of the quickstart."""
    lines = ["| chip | for | release | V4-Flash | V4-Pro | V4.1-Flash | state |", "|---|---|---|---|---|---|---|"]
    for row in find_your_chip():
        cells = [
            f"[{row.vendor} {row.product}]({_QUICKSTART}#{row.chip})",
            f"{row.stack_title}, which {verdict_words(row)} it ({known_words(row)})",
            f"`{row.format}`",
            _size(row.flash),
            _size(row.pro),
            _size(row.v41_flash),
            ", ".join(dict.fromkeys(state_words(need) for need in row.needs)),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def quickstart() -> str:
    """A section for each chip: what it is, and for each release and model the commands in their order."""
    return "\n".join(_section(chip) for chip in load_chips().values())


def _section(chip: Chip) -> str:
    products = ", ".join(f"{one.name} ({one.memory_gib} GiB, {one.cards_per_node} a node)" for one in chip.products)
    fp8 = {True: "FP8 in hardware", False: "no FP8 in hardware", None: "FP8 in hardware: unknown"}[chip.fp8]
    text = f"## {chip.id}\n\n{chip.vendor} {products}; `{chip.torch_device}` to torch, {chip.dist_library}; {fp8}.\n"
    for row in rows_of(chip.id):
        text += (
            f"\n### {chip.id}: {row.format} for {row.stack_title}\n\n{row.words}, on {row.product}. The stack "
            f"({row.stack_version}) {verdict_words(row)} it: {known_words(row)}.\n"
        )
        for need in row.needs:
            text += _commands(chip, need)
    notes = "".join(f"- {note}\n" for note in chip.notes)
    return f"{text}\nGood to know:\n\n{notes}" if notes else text


def _commands(chip: Chip, need: Need) -> str:
    said = state_words(need) if need.progress is None else f"{state_words(need)}; {need.progress}"
    return (
        f"\n**{need.model}**: {_size(need)}, {console.human_bytes(need.card_bytes)} of weights a card; {said}.\n\n"
        f"<!-- not run: the published checkpoint and the chip; its recipe refuses a small model -->\n"
        f"```\n{need.convert}\n"
        f"flagrelease verify releases/{need.release} --source {need.model}\n"
        f"flagrelease doctor --chip {chip.id}      # on the chip\n"
        f"{need.start}\n```\n"
    )


def _size(need: Need | None) -> str:
    if need is None:
        return "-"
    nodes = f"{need.nodes} node{'s' if need.nodes > 1 else ''}"
    return f"{console.human_bytes(need.bytes)}, {need.cards} cards, {nodes}"

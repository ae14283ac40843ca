"""`find_your_chip`: for each chip its releases of V4-Flash and V4-Pro, what they need, and the commands for them.

`flagrelease chips` prints these rows, and the table of README.md is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from flagrelease.chips.launch import cards_for, cards_started, launch_lines
from flagrelease.chips.listing.progress import WORDS, State, progress_of
from flagrelease.chips.listing.sizes import planned_sizes
from flagrelease.chips.stacks import Mark
from flagrelease.chips.table import load_chips
from flagrelease.formats.releases import RELEASE_FORMATS, ReleaseFormatName
from flagrelease.records.chip_releases import FLAGOS, ChipRelease
from flagrelease.records.named import shipped_recipes
from flagrelease.records.recipe import Recipe, read_recipe

# The newest recipe of each kind, by the word that people type.
NEWEST = {"flash": "deepseek-v4-flash-0731", "pro": "deepseek-v4-pro-0813"}


@dataclass(frozen=True, slots=True)
class Need:
    """One release of one model on one chip.

    Attributes:
        recipe: its short name, as commands take it.
        release: `FORMAT-LAYOUT`.
        bytes: of its tensor files.
        card_bytes: of weights on each card.
        cards, nodes: of the product that it is for: the fewest whose memory holds the weights, or as many as the
            stack's own command takes; `start` has the same number.
    """

    model: str
    recipe: str
    release: str
    bytes: int
    card_bytes: int
    cards: int
    nodes: int
    state: State
    progress: str | None
    convert: str
    start: str


@dataclass(frozen=True, slots=True)
class ChipRow:
    """One kind of release of a chip: its format and what it is for, and what it needs for each size of model.

    Attributes:
        stack: id of the serving stack; `flagos` is this repository's engine and DeepSeek's and FlagOS' own.
        verdict, mark: whether the stack loads the format, and how well that is known.
        flash, pro: None if the newest recipe of that size has no such release.
    """

    chip: str
    vendor: str
    product: str
    format: ReleaseFormatName
    words: str
    stack: str
    stack_title: str
    stack_version: str
    verdict: str
    mark: Mark
    flash: Need | None
    pro: Need | None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Of both sizes, those that there are."""
        return tuple(need for need in (self.flash, self.pro) if need is not None)


@cache
def find_your_chip() -> tuple[ChipRow, ...]:
    """All rows: chips in the order of the table, the releases of each in the order of the recipes."""
    recipes = {size: read_recipe(shipped_recipes()[name]) for size, name in NEWEST.items()}
    rows = []
    for chip in load_chips().values():
        found: dict[tuple[str, str], dict[str, ChipRelease]] = {}
        for size, recipe in recipes.items():
            for one in recipe.chosen([chip.id]) if chip.id in recipe.releases else ():
                found.setdefault((one.spec.stack or FLAGOS, one.spec.format), {})[size] = one
        for by_size in found.values():
            needs = {size: _need(recipes[size], size, one) for size, one in by_size.items()}
            rows.append(_row(next(iter(by_size.values())), needs))
    return tuple(rows)


def rows_of(chip: str) -> tuple[ChipRow, ...]:
    """The rows of one chip, by its id."""
    return tuple(row for row in find_your_chip() if row.chip == chip)


def _row(one: ChipRelease, needs: dict[str, Need]) -> ChipRow:
    stack = one.stack
    assert stack is not None, "each release of the shipped recipes names its stack"
    claim = stack.by_form[one.spec.format]
    return ChipRow(
        chip=one.chip.id,
        vendor=one.chip.vendor,
        product=one.product.name,
        format=one.spec.format,
        words=RELEASE_FORMATS[one.spec.format].words,
        stack=stack.id,
        stack_title=stack.title,
        stack_version=stack.version,
        verdict=claim.verdict,
        mark=claim.mark,
        flash=needs.get("flash"),
        pro=needs.get("pro"),
    )


def _need(recipe: Recipe, size: str, one: ChipRelease) -> Need:
    planned, product = planned_sizes()[recipe.model].releases[one.spec.name], one.product
    cards = cards_for(planned.bytes, product.memory_gib)
    if planned.rank_bytes is not None:
        cards = int(one.spec.layout.removeprefix("mp"))
    elif one.stack is not None:
        cards = cards_started(one.stack.launch, cards, one.stack.by_form[one.spec.format].flags)
    nodes = -(-cards // product.cards_per_node)
    reached = progress_of(one.chip.id, recipe.model, one.spec.name)
    name, choice = NEWEST[size].removeprefix("deepseek-v4-"), f"{one.chip.id}:{one.spec.name}"
    return Need(
        model=recipe.model,
        recipe=name,
        release=one.spec.name,
        bytes=planned.bytes,
        card_bytes=planned.rank_bytes or -(-planned.bytes // cards),
        cards=cards,
        nodes=nodes,
        state="planned" if reached is None else reached.state,
        progress=None if reached is None else f"{reached.what} ({reached.record})",
        convert=f"flagrelease convert {name} --checkpoint {recipe.model} --chip {choice} --out releases",
        start=_start(recipe.model, one, cards, nodes),
    )


def _start(model: str, one: ChipRelease, cards: int, nodes: int) -> str:
    """The command that serves the release where it was converted, on one line."""
    stack, folder = one.stack, f"releases/{one.spec.name}"
    assert stack is not None
    if stack.id == FLAGOS:
        if nodes == 1:
            return f"flagrelease serve {folder}"
        scripts = f"flagrelease scripts {folder} --chip {one.chip.id} --out run"
        return f"{scripts} && MASTER_ADDR=FIRST-NODE NODE_RANK=N bash run/run_node.sh"
    if stack.launch is None:
        return f"as {stack.title} says; no source has its command"
    claim = stack.by_form[one.spec.format]
    lines = launch_lines(stack.launch, folder, model, cards, nodes, claim.flags, claim.environment)
    return " ".join(line.removesuffix("\\").strip() for line in lines)


def state_words(need: Need) -> str:
    """How far it is, in words."""
    return WORDS[need.state]

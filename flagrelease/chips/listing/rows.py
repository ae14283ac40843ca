"""`find_your_chip`: for each chip its releases of V4-Flash, V4-Pro and V4.1-Flash, what they need, and their commands.

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
from flagrelease.model.families import family_named
from flagrelease.records.chip_releases import FLAGOS, ChipRelease
from flagrelease.records.named import shipped_recipes, short_name
from flagrelease.records.recipe import Recipe, read_recipe

# The newest recipe of each kind of model, by the attribute of a row.
NEWEST = {"flash": "deepseek-v4-flash-0731", "pro": "deepseek-v4-pro-0813", "v41_flash": "deepseek-v4.1-flash"}


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
    """One kind of release of a chip: its format and what it is for, and what it needs for each kind of model.

    Attributes:
        stack: id of the serving stack; `flagos` is this repository's engine and DeepSeek's and FlagOS' own.
        verdict, mark: whether the stack loads the format, and how well that is known.
        flash, pro, v41_flash: None if the newest recipe of that kind has no such release.
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
    v41_flash: Need | None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Of all kinds, those that there are."""
        return tuple(need for need in (self.flash, self.pro, self.v41_flash) if need is not None)


@cache
def find_your_chip() -> tuple[ChipRow, ...]:
    """All rows: chips in the order of the table, the releases of each in the order of the recipes."""
    recipes = {kind: read_recipe(shipped_recipes()[name]) for kind, name in NEWEST.items()}
    rows = []
    for chip in load_chips().values():
        # what a stack makes of a format is known for each family, so families have rows of their own
        found: dict[tuple[str, str, str], dict[str, ChipRelease]] = {}
        for kind, recipe in recipes.items():
            for one in recipe.chosen([chip.id]) if chip.id in recipe.releases else ():
                found.setdefault((one.spec.stack or FLAGOS, one.spec.format, _family(recipe)), {})[kind] = one
        for (*_, family), by_kind in found.items():
            needs = {kind: _need(recipes[kind], kind, one) for kind, one in by_kind.items()}
            rows.append(_row(next(iter(by_kind.values())), family, needs))
    return tuple(rows)


def _family(recipe: Recipe) -> str:
    """`model_type` of the recipe's model."""
    family = family_named(recipe.model)
    assert family is not None, "the newest recipes are for published models"
    return family.model_type


def rows_of(chip: str) -> tuple[ChipRow, ...]:
    """The rows of one chip, by its id."""
    return tuple(row for row in find_your_chip() if row.chip == chip)


def _row(one: ChipRelease, family: str, needs: dict[str, Need]) -> ChipRow:
    stack = one.stack
    assert stack is not None, "each release of the shipped recipes names its stack"
    claim = stack.claim(one.spec.format, family)
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
        v41_flash=needs.get("v41_flash"),
    )


def _need(recipe: Recipe, kind: str, one: ChipRelease) -> Need:
    planned, product, family = planned_sizes()[recipe.model].releases[one.spec.name], one.product, _family(recipe)
    cards = cards_for(planned.bytes, product.memory_gib)
    if planned.rank_bytes is not None:
        cards = int(one.spec.layout.removeprefix("mp"))
    elif one.stack is not None:
        cards = cards_started(one.stack.launch_of(family), cards, one.stack.claim(one.spec.format, family).flags)
    nodes = -(-cards // product.cards_per_node)
    reached = progress_of(one.chip.id, recipe.model, one.spec.name)
    name, choice = short_name(NEWEST[kind]), f"{one.chip.id}:{one.spec.name}"
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
        start=_start(recipe.model, family, one, cards, nodes),
    )


def _start(model: str, family: str, one: ChipRelease, cards: int, nodes: int) -> str:
    """The command that serves the release where it was converted, on one line."""
    stack, folder = one.stack, f"releases/{one.spec.name}"
    assert stack is not None
    if stack.id == FLAGOS:
        if nodes == 1:
            return f"flagrelease serve {folder}"
        scripts = f"flagrelease scripts {folder} --chip {one.chip.id} --out run"
        return f"{scripts} && MASTER_ADDR=FIRST-NODE NODE_RANK=N bash run/run_node.sh"
    launch, claim = stack.launch_of(family), stack.claim(one.spec.format, family)
    if launch is None:
        return f"as {stack.title} says; no source has its command"
    lines = launch_lines(launch, folder, model, cards, nodes, claim.flags, claim.environment)
    return " ".join(line.removesuffix("\\").strip() for line in lines)


def state_words(need: Need) -> str:
    """How far it is, in words."""
    return WORDS[need.state]

"""What a machine can run: each kind of numbers in the bundled engine, and each release of its chip."""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.chips.launch import cards_for, cards_started
from flagrelease.chips.listing.rows import ChipRow, Need, rows_of
from flagrelease.chips.listing.sizes import planned_sizes
from flagrelease.chips.stacks import load_stacks
from flagrelease.console import human_bytes
from flagrelease.doctor.found import MODEL, Ability, Found, engine_trouble, missing
from flagrelease.doctor.signs import load_signs

_NUMBERS = {"bf16": "bf16-mp16", "fp8": "fp8-hf", "int8": "int8-hf"}  # the release that stands for each


def runs(found: Found) -> Iterator[Ability]:
    """Each kind of numbers in the bundled engine, for V4-Flash."""
    trouble = engine_trouble(found)
    for numbers, release in _NUMBERS.items():
        what = f"run {numbers}"
        if trouble is not None:
            yield Ability(what=what, can="no", why=trouble[0], install=trouble[1])
        elif not found.torch.devices:
            device = found.torch.kind
            yield Ability(what=what, can="partly", why=f"torch shows no {device} device: small models on the CPU only")
        else:
            yield _run(found, what, numbers, planned_sizes()[MODEL].releases[release].bytes)


def _run(found: Found, what: str, numbers: str, size: int) -> Ability:
    here, needed = len(found.torch.devices), cards_for(size, found.card_gib)
    emulated = _emulated(found) if numbers == "fp8" else None
    cards = f"{here} device{'s' if here > 1 else ''} of {found.card_gib} GiB"
    if needed <= here:
        why = f"{MODEL} ({human_bytes(size)}) on {needed} ranks of {cards}"
        return Ability(what=what, can="partly" if emulated else "yes", why=f"{why}{emulated or ''}")
    nodes = -(-needed // here)
    there = f"there {'are' if here > 1 else 'is'} {cards}"
    why = f"{MODEL} ({human_bytes(size)}) needs {needed} ranks; {there}: {nodes} machines like this one"
    return Ability(what=what, can="partly", why=f"{why}{emulated or ''}")


def _emulated(found: Found) -> str | None:
    """What is said of FP8 in the engine, where the chip does not have it."""
    chip, capability, without = found.chip, found.torch.devices[0].capability, None
    if chip is not None and chip.fp8 is False:
        without = f"{chip.id} has no FP8 in hardware (chip table)"
    elif chip is not None and capability is not None and chip.older_than_fp8(capability):
        there, first = (".".join(map(str, version)) for version in (capability, chip.fp8_from))
        without = f"compute capability {there} has no FP8, which begins with {first}"
    return None if without is None else f"; {without}: the engine emulates it exactly, slowly"


def possible_releases(found: Found) -> list[ChipRow]:
    """The chip's releases that can be run here, by the engine or by a stack that is installed; on several nodes too."""
    assert found.chip is not None
    return [row for row in rows_of(found.chip.id) if row.flash is not None and _why_not(found, row, row.flash) is None]


def releases(found: Found) -> Iterator[Ability]:
    """Each release that the recipe of V4-Flash has for the chip."""
    assert found.chip is not None
    for row in rows_of(found.chip.id):
        if row.flash is not None:
            yield _release(found, row, row.flash)


def _release(found: Found, row: ChipRow, need: Need) -> Ability:
    what = f"run {need.release} (made for {row.stack})"
    if (reason := _why_not(found, row, need)) is not None:
        return Ability(what=what, can="no", why=reason)
    here, cards = len(found.torch.devices), _cards(found, row, need)
    absent = missing(found.packages, load_signs().stacks.get(row.stack, ()))
    by = row.stack_title if _stack_is_here(found, row) else "flagrelease's engine"
    lack = f"; {row.stack} is not installed ({', '.join(absent)} missing)" if absent else ""
    emulated = _emulated(found) if row.format.startswith("fp8") and not _stack_is_here(found, row) else None
    lack += emulated or ""
    if cards <= here:
        why = f"V4-Flash on {cards} of {here} devices, by {by}{lack}"
        return Ability(what=what, can="partly" if emulated else "yes", why=why)
    nodes = -(-cards // here)
    return Ability(what=what, can="partly", why=f"V4-Flash needs {cards} cards: {nodes} machines like this one{lack}")


def _cards(found: Found, row: ChipRow, need: Need) -> int:
    """An mp release is cut for its number; one in the hf layout for the devices here, or as its stack is started."""
    if _is_cut(need):
        return need.cards
    fewest, stack = cards_for(need.bytes, found.card_gib), load_stacks()[row.stack]
    if not _stack_is_here(found, row):
        return fewest
    return cards_started(stack.launch, fewest, stack.by_form[row.format].flags)


def _is_cut(need: Need) -> bool:
    return not need.release.endswith("-hf")


def _stack_is_here(found: Found, row: ChipRow) -> bool:
    names = load_signs().stacks.get(row.stack)
    return names is not None and not missing(found.packages, names)


def _why_not(found: Found, row: ChipRow, need: Need) -> str | None:
    """Why a release of the chip cannot be run here; None if it can, on more machines like this one if need be."""
    if not found.torch.devices:
        return f"torch shows no {found.torch.kind} device" if found.torch.installed else "no torch is installed"
    if _is_cut(need) and cards_for(need.card_bytes, found.card_gib) > 1:
        size = human_bytes(need.card_bytes)
        return f"a rank's weights, {size}, do not fit a device of {found.card_gib} GiB: convert with --cards for more"
    if _stack_is_here(found, row):
        return None
    trouble = engine_trouble(found)
    return None if trouble is None else trouble[0]

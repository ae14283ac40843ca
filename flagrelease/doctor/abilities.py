"""What a machine can do, in words: convert, verify, run each kind of numbers on how many ranks, serve, publish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.launch import cards_for
from flagrelease.chips.listing.rows import ChipRow, rows_of
from flagrelease.chips.listing.sizes import planned_sizes
from flagrelease.chips.stacks import stacks_of
from flagrelease.chips.table import Chip
from flagrelease.console import human_bytes
from flagrelease.doctor.devices import Torch
from flagrelease.doctor.logins import Login
from flagrelease.doctor.machine import Machine
from flagrelease.doctor.packages import Packages
from flagrelease.doctor.signs import load_signs

Can = Literal["yes", "partly", "no"]
MODEL = "DeepSeek-V4-Flash-0731"
_NUMBERS = {"bf16": "bf16-mp16", "fp8": "fp8-hf", "int8": "int8-hf"}  # the release that stands for each
_CORE, _ENGINE, _SERVE = ("numpy", "numba", "blake3"), ("safetensors", "tokenizers"), ("fastapi", "uvicorn")
_PUBLISH = ("cryptography", "huggingface-hub", "modelscope-hub")
_LEAST_DESCRIPTORS, _LEAST_SHARED = 4096, 1 << 30
_SHOWN = 0.92  # of the memory that a card is sold with, a device shows at least this share


class Ability(BaseModel):
    """One thing. `install` are commands for what is missing."""

    model_config = ConfigDict(frozen=True)

    what: str
    can: Can
    why: str
    install: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What abilities follow from; `chip` is the one that was asked for, else the one that is here, if any."""

    chip: Chip | None
    packages: Packages
    machine: Machine
    torch: Torch
    logins: list[Login]

    @property
    def card_gib(self) -> int:
        """Memory of the smallest device: as the product is sold, of which a device shows a few per cent less."""
        sizes = [one.bytes / 2**30 for one in self.torch.devices if one.bytes]
        products = () if self.chip is None else self.chip.products
        if not sizes:
            return products[0].memory_gib if products else 0
        shown = min(sizes)
        sold = [one.memory_gib for one in products if _SHOWN * one.memory_gib <= shown <= one.memory_gib]
        return min(sold, default=int(shown))


def abilities(found: Found) -> list[Ability]:
    """All of them, in the order of the work."""
    return [
        _convert(found),
        _verify(found),
        *_runs(found),
        *(_releases(found) if found.chip is not None else ()),
        *_serves(found),
        _publish(found),
    ]


def possible_releases(found: Found) -> list[ChipRow]:
    """The chip's releases that can be run here, by the engine or by a stack that is installed; on several nodes too."""
    assert found.chip is not None
    return [row for row in rows_of(found.chip.id) if _why_not(found, row) is None]


def _missing(packages: Packages, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if packages.version(name) is None]


def _convert(found: Found) -> Ability:
    if missing := _missing(found.packages, _CORE):
        return Ability(what="convert", can="no", why=f"{', '.join(missing)} missing", install=("pip install .",))
    sizes, disk = planned_sizes()[MODEL], found.machine.disk_free
    smallest = min(one.bytes for one in sizes.releases.values())
    needed = sizes.source_bytes + smallest
    text = (
        f"{human_bytes(disk)} are free in {found.machine.disk}; the checkpoint of {MODEL} takes "
        f"{human_bytes(sizes.source_bytes)} and its smallest release {human_bytes(smallest)}"
    )
    return Ability(what="convert", can="yes" if disk >= needed else "partly", why=text)


def _verify(found: Found) -> Ability:
    if missing := _missing(found.packages, _CORE):
        return Ability(what="verify", can="no", why=f"{', '.join(missing)} missing", install=("pip install .",))
    return Ability(what="verify", can="yes", why=f"on the CPU, {found.machine.cores:g} cores; it writes nothing")


def _engine_trouble(found: Found) -> tuple[str, tuple[str, ...]] | None:
    """Why the bundled engine cannot run any model here, and what to install."""
    torch, vendor = found.torch, found.chip is not None and found.chip.id != "nvidia"
    if not torch.installed:
        install = "the vendor's image or wheel of torch" if vendor else "pip install '.[engine]'"
        return "no torch is installed", (install,)
    if torch.failed_at is not None:
        images = f"the vendor's image or wheels; `flagrelease chips {found.chip.id}` names them" if found.chip else ""
        return f"torch cannot {torch.failed_at}: {torch.failure}", (images,) if vendor else ()
    if missing := _missing(found.packages, _ENGINE):
        return f"{', '.join(missing)} missing", ("pip install '.[chip]'",)
    return None


def _runs(found: Found) -> Iterator[Ability]:
    """Each kind of numbers in the bundled engine, for V4-Flash."""
    trouble = _engine_trouble(found)
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
    if numbers == "fp8" and (hardware := _fp8(found)) is not None:
        return Ability(what=what, can="no", why=hardware)
    cards = f"{here} device{'s' if here > 1 else ''} of {found.card_gib} GiB"
    if needed <= here:
        return Ability(what=what, can="yes", why=f"{MODEL} ({human_bytes(size)}) on {needed} ranks of {cards}")
    nodes = -(-needed // here)
    why = f"{MODEL} ({human_bytes(size)}) needs {needed} ranks; there are {cards}: {nodes} machines like this one"
    return Ability(what=what, can="partly", why=why)


def _fp8(found: Found) -> str | None:
    """Why FP8 is no way here."""
    capability = found.torch.devices[0].capability
    if found.chip is not None and found.chip.fp8 is False:
        return f"{found.chip.id} has no FP8 in hardware (chip table); its release is BF16 or INT8"
    if found.chip is not None and found.chip.id == "nvidia" and capability is not None and capability < (8, 9):
        return f"compute capability {capability[0]}.{capability[1]} has no FP8; it begins with 8.9"
    return None


def _why_not(found: Found, row: ChipRow) -> str | None:
    """Why a release of the chip cannot be run here; None if it can, on more machines like this one if need be."""
    here = len(found.torch.devices)
    if here == 0:
        return f"torch shows no {found.torch.kind} device" if found.torch.installed else "no torch is installed"
    if row.flash is None:
        return "no recipe for V4-Flash has it"
    stack_here = not _missing(found.packages, load_signs().stacks.get(row.stack, ("no distribution is known",)))
    if not stack_here and (trouble := _engine_trouble(found)) is not None:
        return trouble[0]
    return None


def _releases(found: Found) -> Iterator[Ability]:
    assert found.chip is not None
    for row in rows_of(found.chip.id):
        if row.flash is None:
            continue
        what = f"run {row.flash.release} (made for {row.stack})"
        reason = _why_not(found, row)
        if reason is not None:
            yield Ability(what=what, can="no", why=reason)
            continue
        here, cards = len(found.torch.devices), row.flash.cards
        missing = _missing(found.packages, load_signs().stacks.get(row.stack, ()))
        by = f"{row.stack_title}" if not missing and row.stack in load_signs().stacks else "flagrelease's engine"
        lack = f"; {row.stack} is not installed ({', '.join(missing)} missing)" if missing else ""
        if cards <= here:
            yield Ability(what=what, can="yes", why=f"V4-Flash on {cards} of {here} devices, by {by}{lack}")
        else:
            nodes = -(-cards // here)
            yield Ability(
                what=what, can="partly", why=f"V4-Flash needs {cards} cards: {nodes} machines like this one{lack}"
            )


def _serves(found: Found) -> Iterator[Ability]:
    trouble = _engine_trouble(found)
    missing = _missing(found.packages, _SERVE)
    if trouble is not None:
        yield Ability(what="serve", can="no", why=trouble[0], install=trouble[1])
    elif missing:
        yield Ability(what="serve", can="no", why=f"{', '.join(missing)} missing", install=("pip install '.[serve]'",))
    else:
        warnings = list(_narrow(found.machine))
        text = "; ".join(warnings) or "port, file descriptors and shared memory are in order"
        yield Ability(what="serve", can="partly" if warnings else "yes", why=text)
    if found.chip is not None:
        for stack in stacks_of(found.chip.id):
            names = load_signs().stacks.get(stack.id)
            if names is not None and not _missing(found.packages, names):
                versions = ", ".join(f"{name} {version}" for name, version in found.packages.versions(names).items())
                loads = [form for form, claim in stack.by_form.items() if claim.verdict == "loads"]
                why = f"{versions}; known to load {', '.join(loads) or 'nothing'} (as of {stack.version})"
                yield Ability(what=f"serve by {stack.title}", can="yes", why=why)


def _narrow(machine: Machine) -> Iterator[str]:
    """What will be in a server's way."""
    for port, free in machine.ports.items():
        if not free and port.startswith("serve"):
            yield f"the port of {port} is taken: --port"
    if machine.descriptors is not None and machine.descriptors < _LEAST_DESCRIPTORS:
        yield f"{machine.descriptors} file descriptors are few for many clients: ulimit -n 65535"
    if machine.shared_memory is None or machine.shared_memory < _LEAST_SHARED:
        size = "none" if machine.shared_memory is None else human_bytes(machine.shared_memory)
        yield f"/dev/shm has {size}, and ranks exchange through it: start the container with --ipc=host"


def _publish(found: Found) -> Ability:
    if missing := _missing(found.packages, _PUBLISH):
        why = f"to a folder only: {', '.join(missing)} missing"
        return Ability(what="publish", can="partly", why=why, install=("pip install '.[publish]'",))
    ready = [login.hub for login in found.logins if login.there and login.looks_right and login.trouble is None]
    if not ready:
        return Ability(what="publish", can="partly", why="to a folder only: there is no token for a hub")
    return Ability(what="publish", can="yes", why=f"there is a token for {' and '.join(ready)}")

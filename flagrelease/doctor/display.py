"""`Diagnosis` as text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape

from flagrelease import console
from flagrelease.doctor.devices import Torch
from flagrelease.doctor.examine import Diagnosis
from flagrelease.doctor.known import Known, load_known
from flagrelease.doctor.logins import Login
from flagrelease.doctor.machine import Machine
from flagrelease.doctor.signs import Sighting

_COLOURS = {"yes": "green", "partly": "yellow", "no": "red", "wrong": "red", "broken": "red", "risk": "yellow"}


def show_diagnosis(found: Diagnosis) -> None:
    """Chip, software, machine, troubles, and what can be done."""
    out = console.out()
    for title, lines in (
        ("chip", _chips(found)),
        ("software", _software(found)),
        ("machine", _machine(found.machine)),
        ("hubs", (_login(one) for one in found.logins)),
    ):
        out.print(f"[bold]{title}[/]")
        for line in lines:
            out.print(f"  {line}", markup=False)
    if found.known or found.unmet:
        out.print("[bold]known to go wrong[/]")
    for known in found.known:
        _show_known(known)
    for line in found.unmet:
        out.print(f"  {line}", markup=False)
    about = "" if found.chip is None else f", as {found.chip}"
    out.print(f"[bold]what this machine can do{about}[/]")
    table = console.table("", "", "")
    for one in found.abilities:
        install = f" To install: {'; '.join(one.install)}" if one.install else ""
        table.add_row(escape(one.what), f"[{_COLOURS[one.can]}]{one.can}[/]", escape(f"{one.why}.{install}"))
    table.show_header = False
    out.print(table)


def _chips(found: Diagnosis) -> Iterator[str]:
    if not found.sightings:
        yield "none of the chip table: no vendor's tool, no device file, no vendor's torch"
    yield from (_sighting(one) for one in found.sightings)
    if found.chip is None and sum(bool(one.hardware or one.software) for one in found.sightings) > 1:
        yield "more than one: say --chip"


def _sighting(one: Sighting) -> str:
    signs = [*one.hardware, *one.software]
    driver = "" if one.driver is None else f"; driver {one.driver}"
    cards = "" if not one.cards else f"; {one.cards} numbered device{'s' if one.cards > 1 else ''}"
    tool = "" if one.tool in (None, "answers") else f"; its tool {one.tool}"
    what = "" if one.hardware else " (software only)"
    if not signs:
        return f"{one.chip}: its tool {one.tool}, and nothing else of it is here"
    return f"{one.chip}{what}: {', '.join(signs)}{cards}{driver}{tool}"


def _software(found: Diagnosis) -> Iterator[str]:
    yield from _torch(found.torch)
    for owner in found.triton:
        yield f"the folder triton: {owner.name} {owner.version}, {owner.files} files, {owner.said}"
    yield ", ".join(f"{name} {version}" for name, version in found.packages.items()) or "no package that matters"


def _torch(torch: Torch) -> Iterator[str]:
    if not torch.installed:
        yield "torch: not installed"
        return
    if torch.failed_at is not None:
        yield f"torch cannot {torch.failed_at}: {torch.failure}"
        return
    count = len(torch.devices)
    yield f"torch {torch.version} shows {count} {torch.kind} device{'' if count == 1 else 's'}"
    yield from sorted({_device(one.name, one.bytes) for one in torch.devices})
    there = {True: "is there", False: "is not there", None: "was not reached"}[torch.backend_there]
    version = "" if torch.backend_version is None else f" ({torch.backend_version})"
    yield f"collectives: {torch.backend} of torch.distributed {there}{version}"


def _device(name: str, size: int | None) -> str:
    return f"  {name}" if size is None else f"  {name}, {console.human_bytes(size)}"


def _machine(machine: Machine) -> Iterator[str]:
    yield f"{machine.system} on {machine.architecture}, Python {machine.python}, {machine.cores:g} cores"
    free, memory = console.human_bytes(machine.memory_free), console.human_bytes(machine.memory)
    shared = "none" if machine.shared_memory is None else console.human_bytes(machine.shared_memory)
    yield f"memory {memory}, {free} free; /dev/shm {shared}"
    limit = "without limit" if machine.descriptors is None else str(machine.descriptors)
    yield f"disk at {machine.disk}: {console.human_bytes(machine.disk_free)} free; file descriptors: {limit}"
    yield "; ".join(f"port of {what}: {'free' if free else 'taken'}" for what, free in machine.ports.items())


def _login(login: Login) -> str:
    if login.there is None:
        return f"{login.hub}: unknown, {login.trouble}"
    if not login.there:
        return f"{login.hub}: no token"
    looks = "looks like one" if login.looks_right else "does not look like one of this hub"
    user = "" if login.user is None else f", of {login.user}"
    return f"{login.hub}: a token, which {looks}{user}{'' if login.trouble is None else f'; {login.trouble}'}"


def _show_known(known: Known) -> None:
    out = console.out()
    out.print(f"  [{_COLOURS[known.severity]}]{known.severity}[/] {known.id}: {escape(known.consequence)}")
    sources = "; ".join(load_known()[0][source] for source in known.sources)
    out.print(f"    {known.remedy} ({known.mark}; {sources})", markup=False)

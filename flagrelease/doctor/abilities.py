"""What a machine can do, in words, in the order of the work: convert, verify, run, serve, publish."""

from __future__ import annotations

from flagrelease.chips.listing.sizes import planned_sizes
from flagrelease.console import human_bytes
from flagrelease.doctor.found import MODEL, Ability, Found, missing
from flagrelease.doctor.runs import releases, runs
from flagrelease.doctor.serves import serves

_CORE = ("numpy", "numba", "blake3")
_PUBLISH = ("cryptography", "huggingface-hub", "modelscope-hub")


def abilities(found: Found) -> list[Ability]:
    """All of them, in the order of the work."""
    return [
        _convert(found),
        _verify(found),
        *runs(found),
        *(releases(found) if found.chip is not None else ()),
        *serves(found),
        _publish(found),
    ]


def _convert(found: Found) -> Ability:
    if absent := missing(found.packages, _CORE):
        return Ability(what="convert", can="no", why=f"{', '.join(absent)} missing", install=("pip install .",))
    sizes, disk = planned_sizes()[MODEL], found.machine.disk_free
    smallest = min(one.bytes for one in sizes.releases.values())
    needed = sizes.source_bytes + smallest
    text = (
        f"{human_bytes(disk)} are free in {found.machine.disk}; the checkpoint of {MODEL} takes "
        f"{human_bytes(sizes.source_bytes)} and its smallest release {human_bytes(smallest)}"
    )
    return Ability(what="convert", can="yes" if disk >= needed else "partly", why=text)


def _verify(found: Found) -> Ability:
    if absent := missing(found.packages, _CORE):
        return Ability(what="verify", can="no", why=f"{', '.join(absent)} missing", install=("pip install .",))
    return Ability(what="verify", can="yes", why=f"on the CPU, {found.machine.cores:g} cores; it writes nothing")


def _publish(found: Found) -> Ability:
    if absent := missing(found.packages, _PUBLISH):
        why = f"to a folder only: {', '.join(absent)} missing"
        return Ability(what="publish", can="partly", why=why, install=("pip install '.[publish]'",))
    ready = [login.hub for login in found.logins if login.there and login.looks_right and login.trouble is None]
    if not ready:
        return Ability(what="publish", can="partly", why="to a folder only: there is no token for a hub")
    return Ability(what="publish", can="yes", why=f"there is a token for {' and '.join(ready)}")

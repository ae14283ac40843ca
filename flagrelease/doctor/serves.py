"""Whether a machine can serve: the bundled server, and the chip's serving stacks that are installed."""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.chips.stacks import stacks_of
from flagrelease.console import human_bytes
from flagrelease.doctor.found import Ability, Found, engine_trouble, missing
from flagrelease.doctor.machine import Machine
from flagrelease.doctor.signs import load_signs

_SERVE = ("fastapi", "uvicorn")
_LEAST_DESCRIPTORS, _LEAST_SHARED = 4096, 1 << 30


def serves(found: Found) -> Iterator[Ability]:
    """By the bundled server, and by each stack of the chip whose distributions are installed."""
    trouble = engine_trouble(found)
    absent = missing(found.packages, _SERVE)
    if trouble is not None:
        yield Ability(what="serve", can="no", why=trouble[0], install=trouble[1])
    elif absent:
        yield Ability(what="serve", can="no", why=f"{', '.join(absent)} missing", install=("pip install '.[serve]'",))
    else:
        warnings = list(_narrow(found.machine))
        text = "; ".join(warnings) or "port, file descriptors and shared memory are in order"
        yield Ability(what="serve", can="partly" if warnings else "yes", why=text)
    if found.chip is not None:
        for stack in stacks_of(found.chip.id):
            names = load_signs().stacks.get(stack.id)
            if names is not None and not missing(found.packages, names):
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

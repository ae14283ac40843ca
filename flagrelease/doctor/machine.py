"""The machine beside its chips: cores, memory, disk, shared memory, file descriptors, ports."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flagrelease.doctor.place import Place

PORTS = {"serve": 8000, "ranks of several machines": 29500}
_UNLIMITED = 1 << 62


class Machine(BaseModel):
    """What was found; sizes in bytes.

    Attributes:
        cores: that this process may use, by affinity and by the limit of its container.
        memory: of the machine, or what its container is allowed.
        memory_free: available without swapping.
        disk_free: where `disk` is, the folder that was asked about.
        shared_memory: size of /dev/shm; null where there is none.
        descriptors: the soft limit of open files; null if there is none.
        ports: what wants the port -> whether it is free.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    system: str
    architecture: str
    python: str
    cores: float
    memory: int
    memory_free: int
    disk: str
    disk_free: int
    shared_memory: int | None
    descriptors: int | None
    ports: dict[str, bool]


def look_at_machine(place: Place, disk: Path) -> Machine:
    """Measure it. `disk` need not exist yet."""
    memory, free = _memory(place)
    folder = disk.absolute()
    while not folder.exists():
        folder = folder.parent
    shared = place.path("/dev/shm")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        host=platform.node(),
        system=_system(place),
        architecture=platform.machine(),
        python=platform.python_version(),
        cores=_cores(place),
        memory=memory,
        memory_free=free,
        disk=str(disk),
        disk_free=shutil.disk_usage(folder).free,
        shared_memory=shutil.disk_usage(shared).total if shared.is_dir() else None,
        descriptors=None if soft == resource.RLIM_INFINITY else soft,
        ports={f"{what} ({port})": _is_free(port) for what, port in PORTS.items()},
    )


def _system(place: Place) -> str:
    lines = _read(place.path("/etc/os-release")).splitlines()
    named = next((line for line in lines if line.startswith("PRETTY_NAME=")), None)
    return platform.system() if named is None else named.partition("=")[2].strip('"')


def _cores(place: Place) -> float:
    affinity = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read(place.path("/sys/fs/cgroup/cpu.max")).strip().partition(" ")
    return min(affinity, int(quota) / int(period)) if quota.isdecimal() and period.isdecimal() else affinity


def _memory(place: Place) -> tuple[int, int]:
    """(all, free), with what a container is allowed."""
    lines = _read(place.path("/proc/meminfo")).splitlines()
    found = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if rest.strip()
    }
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    limit = _number(place.path("/sys/fs/cgroup/memory.max")) or _number(
        place.path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    )
    if limit is not None and limit < min(total, _UNLIMITED):
        used = _number(place.path("/sys/fs/cgroup/memory.current")) or 0
        return limit, max(0, min(free, limit - used))
    return total, free


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

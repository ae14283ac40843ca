"""The parts of a conversion that machines share (`convert --part I/N`): which are finished, how far the others are."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.status.unfinished import Progress, is_unfinished, progress

_PARTS, _DONE = "parts", "done.json"
_NAME = re.compile(r"([1-9][0-9]{0,4})-of-([1-9][0-9]{0,4})")


class PartState(BaseModel):
    """One part.

    Attributes:
        part: as `--part` has it, 3/8.
        state: `finished`: its record says so; `unfinished`: begun; `missing`: others of the same number lie here.
        releases: that it makes files of.
        progress: over all of them, of a part that is begun.
    """

    model_config = ConfigDict(frozen=True)

    part: str
    state: Literal["finished", "unfinished", "missing"]
    releases: tuple[str, ...] = ()
    progress: Progress | None = None


def parts_in(out: Path) -> tuple[PartState, ...]:
    """The parts under `out`/parts, in their order; none where nobody shares a conversion."""
    folder = out / _PARTS
    begun: defaultdict[int, dict[int, Path]] = defaultdict(dict)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and (match := _NAME.fullmatch(path.name)):
            begun[int(match[2])][int(match[1])] = path
    return tuple(
        _look_at(f"{number}/{count}", found.get(number))
        for count, found in sorted(begun.items())
        for number in range(1, count + 1)
    )


def _look_at(part: str, folder: Path | None) -> PartState:
    if folder is None:
        return PartState(part=part, state="missing")
    releases = {path.name: progress(path) for path in sorted(folder.iterdir()) if is_unfinished(path)}
    return PartState(
        part=part,
        state="finished" if (folder / _DONE).is_file() else "unfinished",
        releases=tuple(releases),
        progress=_together(list(releases.values())),
    )


def _together(several: list[Progress]) -> Progress | None:
    if not several:
        return None
    totals = [one.total for one in several if one.total is not None]
    working = [one.working for one in several]
    return Progress(
        written=sum(one.written for one in several),
        total=sum(totals) if len(totals) == len(several) else None,
        files=sum(one.files for one in several),
        working=True if True in working else None if None in working else False,
    )

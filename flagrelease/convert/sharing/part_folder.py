"""Where the parts of a conversion lie: OUT/parts/3-of-8/RELEASE/, each with files and a journal of its own.

OUT/parts/3-of-8/done.json says that the part is finished. On a shared file system all parts lie in one OUT. Elsewhere
each machine has an OUT, and copying these folders into one another makes the same, because no two machines write to
one part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flagrelease import __version__
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.earlier import PARTS_FOLDER
from flagrelease.convert.running.journal import JOURNAL_NAME, WORK_FOLDER, Journal, binding_of, check_complete, ours
from flagrelease.convert.sharing.shares import Share
from flagrelease.durable.files import refused
from flagrelease.durable.folder import WorkFolder
from flagrelease.errors import ResourceError
from flagrelease.records.manifest import MANIFEST_NAME, CheckedFileRecord
from flagrelease.shard.files import CheckpointFiles

DONE_NAME, PROGRESS_NAME = "done.json", "progress"
# In OUT/parts/ while an engine makes the parts: who shares them out, and the lock that nobody else does.
DRIVER_NAME, DRIVER_LOCK_NAME = "driver", "driver.lock"
_NAME = re.compile(r"([1-9][0-9]*)-of-([1-9][0-9]*)")


class Done(BaseModel):
    """The record of a finished part.

    Attributes:
        tool: the version of flagrelease that made it.
        part: as `3/8`.
        checkpoint: digest of the source's identity.
        plans: digest of each release's plan, by the release's folder.
        checked: files of the source that this part compared with a stated digest.
        listing: digest of what a hub's listing states of the tensor files; None for a folder. A tag or a branch can be
            moved between two parts, and what neither the identity samples nor this part compares would not be seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    tool: str
    part: str
    checkpoint: str
    plans: dict[str, str]
    checked: tuple[CheckedFileRecord, ...]
    listing: str | None = None


def done_record(plan: Plan, share: Share, checked: Iterable[CheckedFileRecord]) -> Done:
    """What says that `share` of `plan` is finished."""
    return Done(
        tool=__version__,
        part=str(share),
        checkpoint=plan.source.identity.digest,
        plans={release.target.folder: release.digest_without_source for release in plan.releases},
        checked=tuple(checked),
        listing=_listing_digest(plan.source.files),
    )


def _listing_digest(files: CheckpointFiles) -> str | None:
    if files.hub is None:
        return None
    stamps = ((name, files.stamp(name)) for name in files.names() if name.endswith(".safetensors"))
    return hashlib.sha256("".join(f"{name}\0{stamp}\n" for name, stamp in stamps).encode()).hexdigest()


def read_done(folder: Path) -> Done | None:
    """The record in a part's folder; None if the part is not finished.

    Raises:
        ResourceError: it cannot be read, or is none of this version's.
    """
    path = folder / DONE_NAME
    if not path.is_file():
        return None
    try:
        with refused(path):
            return Done.model_validate_json(path.read_bytes())
    except ValidationError:
        raise ResourceError(
            f"{path}: is damaged or was written by another version of flagrelease; remove {folder} and run this part "
            f"again"
        ) from None


def require_same(found: Done, expected: Done, where: Path) -> None:
    """Refuse the record of a part of something else.

    Raises:
        ResourceError: by what differs: version of flagrelease, checkpoint, the hub's listing, plan or part.
    """
    differs = [
        f"{name} ({was} there, {now} here)"
        for name, was, now in (
            ("another version of flagrelease", found.tool, expected.tool),
            ("another checkpoint", found.checkpoint[:16], expected.checkpoint[:16]),
            ("other files on the hub", str(found.listing)[:16], str(expected.listing)[:16]),
            ("another part", found.part, expected.part),
        )
        if was != now
    ]
    if found.plans != expected.plans and found.tool == expected.tool:  # the version is in every plan
        differs.append("another plan (other releases, recipe or options)")
    if differs:
        raise ResourceError(
            f"{where}: was made for {' and '.join(differs)}; remove it and run this part again, or give another --out"
        )


def folder_of(out: Path, share: Share) -> Path:
    """Where a part lies."""
    return out / PARTS_FOLDER / f"{share.number}-of-{share.count}"


def counts_in(out: Path) -> set[int]:
    """Into how many parts the conversions are divided whose parts lie under `out`."""
    folder = out / PARTS_FOLDER
    with refused(folder):
        names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return {int(match[2]) for name in names if (match := _NAME.fullmatch(name))}


def require_count(out: Path, count: int) -> None:
    """Refuse parts of another number in the same folder: they would be merged with nobody.

    Raises:
        ResourceError: with both numbers.
    """
    others = sorted(counts_in(out) - {count})
    if others:
        raise ResourceError(
            f"{out / PARTS_FOLDER}: holds parts of {' and of '.join(map(str, others))}, not of {count}; give every "
            f"part the same number, or another --out"
        )


def open_part_journal(out: Path, plan: Plan, share: Share, number: int) -> Journal | None:
    """The journal of what `share` makes of release `number` of the plan; None if the release is complete already.

    Raises:
        ResourceError: the release's folder or the part's was begun for something else, or the part is in use.
    """
    release = plan.releases[number]
    whole = out / release.target.folder
    if (whole / MANIFEST_NAME).is_file():
        check_complete(whole, release)
        return None
    if (whole / WORK_FOLDER / JOURNAL_NAME).is_file():
        raise ResourceError(
            f"{whole}: a conversion without --part was begun here, or a merge of parts; finish it, or give another "
            "--out"
        )
    nbytes = sum(plan.files[n].size for n in share.files if plan.files[n].release == number)
    binding = {"version of flagrelease": __version__, "part": str(share)} | binding_of(plan, release)
    folder = folder_of(out, share) / release.target.folder
    work_folder = WorkFolder(folder, WORK_FOLDER, "convert", binding, {"bytes": str(nbytes)})
    try:
        return Journal(work_folder, ours(release))
    except BaseException:
        work_folder.close()
        raise

"""`write_scripts`: the files that run a release on its chip, for a release that is not published."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flagrelease.chips.stacks import stacks_of
from flagrelease.chips.table import Chip
from flagrelease.errors import UsageError
from flagrelease.publish.records import Records, read_records
from flagrelease.publish.run_files import run_files, stack_script
from flagrelease.publish.serving import Served, command, judge_stacks
from flagrelease.records.recipe import Recipe

_NOTHING = {"refused": "refuses it", "silently wrong": "would load it without an error and answer nonsense"}


def write_scripts(release: Path, chip: Chip, stack: str | None, out: Path, recipe: Recipe | None) -> list[Path]:
    """Write the run files of `release` into the folder `out`; returns them in the order of their names.

    They are those of a publication, but name the release by its path, and a script for a serving stack is among them:
    for `stack`, or else for the one that the recipe makes the release for, if its command is known.

    Raises:
        UsageError: `out` is in the release; the stack does not serve the chip, does not load the release, or nobody
            knows how it is started.
        VerificationError: as `read_records`.
    """
    records = read_records(release, chip, None, allow_unvalidated=True, recipe=recipe)
    if out.absolute().is_relative_to(release.absolute()):
        raise UsageError(f"--out {out}: is in the release, whose files are those of its manifest; name another folder")
    files = run_files(records, elsewhere=True)
    served = _served(records, stack)
    if served is not None:
        files[f"serve_{served.stack.id}.sh"] = stack_script(
            records, [*_remarks(served), *command(records, served, '"$release"')], served.name
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return [out / name for name in sorted(files)]


def _served(records: Records, named: str | None) -> Served | None:
    """The stack to write a script for; None if nobody asked and the recipe names none that can be started so."""
    ids = [one.id for one in stacks_of(records.chip.id)]
    if named is not None and named not in ids:
        raise UsageError(f"--stack {named}: does not serve {records.chip.id}; those that do: {', '.join(ids)}")
    wanted = named or records.wanted.spec.stack
    found = [one for one in judge_stacks(records) if one.stack.id == wanted]
    if not found:
        if named is None or named == records.wanted.spec.stack:
            return None  # FlagOS' engine: the run files are for it
        raise UsageError(f"--stack {named}: does not read releases of layout {records.layout}")
    problem = _problem(found[0])
    if problem is None:
        return found[0]
    if named is None:
        return None
    raise UsageError(f"--stack {named}: {problem}")


def _problem(served: Served) -> str | None:
    judgement = served.judgement
    if judgement.verdict in _NOTHING:
        return f"{_NOTHING[judgement.verdict]}: {'; '.join(judgement.why)}"
    return None if served.launch is not None else "no source says how it is started"


def _remarks(served: Served) -> Iterable[str]:
    """What is not known of it, as comments of the script."""
    if not served.loads:
        yield f"# Whether {served.name} loads this release is not known."
    yield from (f"# {why}" for why in served.judgement.why)

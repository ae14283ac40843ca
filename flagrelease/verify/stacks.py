"""The check `stacks`: the serving stacks that a release is made for fill every parameter with what it should hold.

Their loaders are replayed on the headers, config.json and description that lie in the folder. The stacks that the
manifest's recipe names for this release, or that the caller names, decide the check. What other stacks make of the
release is information.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flagrelease.chips.loading.folder import release_in
from flagrelease.chips.loading.release import Release
from flagrelease.chips.loading.verdict import Judgement, judge
from flagrelease.chips.stacks import ServingStack, get_stack, load_stacks
from flagrelease.errors import CheckpointError, first_problem
from flagrelease.model.families import read_config
from flagrelease.records.manifest import MANIFEST_NAME, Manifest
from flagrelease.records.recipe import ReleaseSpecs
from flagrelease.verify.configs import CONFIG
from flagrelease.verify.result import Check, CheckLog, Finding, StackVerdict

NO_STACK = "neither the recipe nor --stack names a serving stack for this release"
_FAILS = {
    "refused": "refuses this release",
    "silently wrong": "loads this release without an error and computes with other numbers",
}


def check_stacks(folder: Path, manifest: Manifest, asked: Iterable[str]) -> tuple[Check, tuple[StackVerdict, ...]]:
    """Judge a release for every stack that reads its layout, and for those that are named.

    Args:
        folder: of the release.
        manifest: its manifest; the stacks that its recipe names for a release of this format and layout are checked.
        asked: ids of stacks that the caller names as well.

    Raises:
        UsageError: the caller names a stack that is not in the table.
    """
    log = CheckLog("stacks")
    wanted = {name: get_stack(name) for name in asked} | _of_recipe(manifest, log)
    layout = manifest.target.layout
    others = [stack for name, stack in load_stacks().items() if layout in stack.layouts and name not in wanted]
    try:
        release = _release(folder, manifest)
        judged = [(stack, judge(stack, release, layout)) for stack in (*wanted.values(), *others)]
    except CheckpointError as error:
        unread = f"no loader can be replayed: {error}"
        if not wanted and not log.failed:
            return log.not_run(unread), ()
        log.add(Finding(rule=unread))
        return log.close(f"the loaders of {', '.join(wanted)}"), ()
    verdicts = tuple(_verdict(stack, judgement, stack.id in wanted) for stack, judgement in judged)
    for one in verdicts:
        if one.named:
            log.saw(1)
            if one.verdict in _FAILS:
                log.add(Finding(rule=f"{one.stack} {_FAILS[one.verdict]}: {'; '.join(one.why)}"))
    if not wanted and not log.failed:
        return log.not_run(NO_STACK), verdicts
    return log.close(", ".join(f"{one.stack}: {one.verdict}" for one in verdicts if one.named)), verdicts


def _of_recipe(manifest: Manifest, log: CheckLog) -> dict[str, ServingStack]:
    """The stacks that the recipe names for a release of this format and layout, by id."""
    given = (manifest.recipe or {}).get("releases", {})
    try:
        releases = TypeAdapter(dict[str, ReleaseSpecs]).validate_python(given)
    except ValidationError as error:
        log.add(Finding(file=MANIFEST_NAME, rule=f"the recipe's releases cannot be read: {first_problem(error)}"))
        return {}
    table = load_stacks()
    named = [spec.stack for specs in releases.values() for spec in specs if spec.is_of(manifest.target) and spec.stack]
    for name in sorted(set(named) - set(table)):
        rule = f"the recipe makes the release for {name!r}, which is not among the stacks that are known"
        log.add(Finding(file=MANIFEST_NAME, rule=rule))
    return {name: table[name] for name in named if name in table}


def _release(folder: Path, manifest: Manifest) -> Release:
    """What a loader sees: of an hf folder its headers; in an mp folder each rank has a piece, so the whole tensors.

    The check `structure` compares the whole tensors of the manifest with the headers of the ranks.
    """
    if manifest.target.layout == "hf":
        return release_in(folder)
    _, document = read_config(folder / CONFIG)
    tensors = {name: (record.dtype, record.shape) for name, record in manifest.tensors.items()}
    return Release(document, None, tensors, frozenset(file.path for file in manifest.files))


def _verdict(stack: ServingStack, judgement: Judgement, named: bool) -> StackVerdict:
    return StackVerdict(
        stack=stack.id,
        version=stack.version,
        named=named,
        verdict=judgement.verdict,
        mark=judgement.mark,
        why=judgement.why,
        flags=judgement.flags,
        environment=judgement.environment,
    )

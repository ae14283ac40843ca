"""What the serving stacks would make of a planned release: their loaders replayed on headers before they are written.

A layer of V4-Pro has 384 experts, all stored alike. A plan looks at a few of them, so that the replays of ten loaders
take two seconds and not half a minute; of a stack that the recipe names and that does not load them, it looks at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.loading.release import Release
from flagrelease.chips.loading.verdict import Verdict, judge
from flagrelease.chips.stacks import Mark, ServingStack, load_stacks, stacks_of
from flagrelease.convert.planning.plan import ReleasePlan
from flagrelease.convert.request import ChipTarget
from flagrelease.formats.releases import MODELSLIM_DESCRIPTION
from flagrelease.model.tensors import Storage

_EXPERT = re.compile(r"(?<=\.experts)\.\d+\.")
_COUNT = re.compile(r" \(and [\d,]+ more\)$")  # of the experts that were looked at


class StackSummary(BaseModel):
    """One stack and one hf release.

    Attributes:
        chips: that the stack serves; of those that were asked for, if any were.
        asked: whether a recipe makes the release for this stack.
        mark: how well what is known of the format is known.
        why: sentences.
        flags, environment: without which the stack does not load the release, beside those of its usual launch.
    """

    model_config = ConfigDict(frozen=True)

    stack: str
    version: str
    chips: list[str]
    asked: bool
    verdict: Verdict
    mark: Mark
    why: list[str]
    flags: list[str]
    environment: list[str]


def judge_stacks(release: ReleasePlan, wanted: Iterable[ChipTarget]) -> list[StackSummary]:
    """The stacks of the chips that get the release; if it is for no chip, all stacks. None read an mp layout."""
    if release.layout is not None:
        return []
    gets = [one for one in wanted if one.target == release.target]
    chips = list(dict.fromkeys(one.chip.id for one in gets))
    stacks: dict[str, ServingStack] = {}
    for stack in [one for chip in chips for one in stacks_of(chip)] or load_stacks().values():
        if "hf" in stack.layouts:
            stacks[stack.id] = stack
    named = {one.stack for one in gets}
    whole = _planned(release)
    few = _few_experts(release, whole) if whole.replayed else whole
    found = []
    for stack in stacks.values():
        judgement = judge(stack, few)
        loads = judgement.verdict in ("loads", "loads with flags")
        if stack.id in named and not loads and few is not whole:
            judgement = judge(stack, whole)
        found.append(
            StackSummary(
                stack=stack.id,
                version=stack.version,
                chips=[chip for chip in stack.chips if chip in chips or not chips],
                asked=stack.id in named,
                verdict=judgement.verdict,
                mark=judgement.mark,
                why=[_COUNT.sub("", why) if stack.id not in named else why for why in judgement.why],
                flags=list(judgement.flags),
                environment=list(judgement.environment),
            )
        )
    return sorted(found, key=lambda one: not one.asked)


def _planned(release: ReleasePlan) -> Release:
    written = release.documents.written
    description = json.loads(written[MODELSLIM_DESCRIPTION]) if MODELSLIM_DESCRIPTION in written else None
    tensors = {name: (part.dtype, part.shape) for name, (_, _, part) in release.parts.items()}
    files = {file.name for file in release.files} | set(written) | set(release.documents.copied)
    return Release(json.loads(written["config.json"]), description, tensors, frozenset(files))


def _few_experts(release: ReleasePlan, whole: Release) -> Release:
    """The release as if it had the experts of one token only; the whole one where experts are not stored alike."""
    experts = max(2, whole.model.num_experts_per_tok)
    config = {**whole.config, "n_routed_experts": experts}
    few = Release(config, whole.description, {}, whole.files)
    shapes = {spec.name: spec.shape for spec in few.specs}
    stored: dict[str, tuple[str, tuple[int, ...]]] = {}
    tensors = {}
    for name, (tensor, _, part) in release.parts.items():
        entry = (part.dtype, part.shape)
        if tensor.spec.storage is Storage.EXPERT and stored.setdefault(_EXPERT.sub(".*.", name), entry) != entry:
            return whole
        if (shape := shapes.get(tensor.spec.name)) is not None:  # the gates are as wide as there are experts
            tensors[name] = (part.dtype, shape if part.shape == tensor.spec.shape else part.shape)
    kept = whole.description and {
        key: value for key, value in whole.description.items() if key in tensors or "." not in key
    }
    return Release(config, kept, tensors, whole.files)


def stack_problems(folder: str, stacks: Iterable[StackSummary]) -> list[str]:
    """Why a release is not what the stack of its recipe loads, as sentences."""
    how = {"refused": "refuses it", "silently wrong": "loads it without an error and answers nonsense"}
    return [
        f"{folder}: the recipe makes it for {one.stack}, which {how[one.verdict]}: {'; '.join(one.why)}"
        for one in stacks
        if one.asked and one.verdict in how
    ]


def stack_notes(folder: str, stacks: Iterable[StackSummary]) -> list[str]:
    """What nobody knows of the stacks that a recipe makes a release for, as sentences."""
    return [
        f"{folder}: whether {one.stack} loads it is not known: {'; '.join(one.why)}"
        for one in stacks
        if one.asked and one.verdict == "unknown"
    ]

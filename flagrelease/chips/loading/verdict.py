"""What a stack makes of a release: the replay of its loader, and what is known of the stack, as one verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from flagrelease.chips.loading.release import Release, skeleton
from flagrelease.chips.loading.replay import Finding, Replay, replay
from flagrelease.chips.loading.rules import Environment, Loader, load_loaders
from flagrelease.chips.stacks import Claim, Form, Mark, ServingStack

Verdict = Literal["loads", "loads with flags", "silently wrong", "refused", "unknown"]
_WRONG = {"unfilled", "misread"}


@dataclass(frozen=True)
class Judgement:
    """What a stack makes of a release.

    Attributes:
        stack: its id.
        form: of the release.
        verdict: `silently wrong` is the worst: the stack starts and answers nonsense.
        mark: how well what is known of the form is known.
        why: sentences; empty where there is nothing to say.
        flags: for the command line, beside those of the stack's launch, without which it does not load.
        environment: variables, each "NAME=VALUE", likewise.
        replay: of the stack's loader in that environment; null where the stack has none that could be read.
    """

    stack: str
    form: Form
    verdict: Verdict
    mark: Mark
    why: tuple[str, ...]
    flags: tuple[str, ...]
    environment: tuple[str, ...]
    replay: Replay | None


@dataclass(frozen=True)
class _Attempt:
    outcome: Literal["loads", "wrong", "refused", "unknown"]
    replay: Replay
    flags: tuple[str, ...]
    environment: tuple[str, ...]


def judge(stack: ServingStack, release: Release, layout: Literal["hf", "mp"] = "hf") -> Judgement:
    """Judge `release` for `stack`: by a replay of its loader on headers, and by what `stacks.yaml` claims of the form.

    The switches of the loader are tried, the fewest changes first, until the release loads. A release that the replay
    finds sound is still unknown, refused or wrong where the claim says so: a loader that fills every parameter proves
    nothing of kernels and memory.

    Raises:
        CheckpointError: config.json is not one of DeepSeek-V4.
    """
    form = release.form
    if not release.replayed:
        return _of_another_family(stack, release, form, layout)
    claim = stack.by_form[form]
    if layout not in stack.layouts:
        why = f"it reads releases of layout {' and '.join(stack.layouts)}, not {layout}"
        return Judgement(stack.id, form, "refused", "verified", (why,), (), (), None)
    if stack.loader is None:
        return _by_claim(stack, form, claim, None, (), ())
    attempt = _best(list(_attempts(load_loaders()[stack.loader], release)))
    if attempt.outcome in ("loads", "unknown") or claim.verdict == "refused":
        return _by_claim(stack, form, claim, attempt.replay, attempt.flags, attempt.environment)
    verdict: Verdict = "silently wrong" if attempt.outcome == "wrong" else "refused"
    bad = [finding for finding in attempt.replay.findings if finding.kind in {*_WRONG, "refused"}]
    as_known = claim.verdict == "wrong" and verdict == "silently wrong"
    known = (claim.why,) if as_known and claim.why else ()
    mark = claim.mark if as_known else load_loaders()[stack.loader].mark
    why_all = (*known, *summary(bad))
    return Judgement(stack.id, form, verdict, mark, why_all, attempt.flags, attempt.environment, attempt.replay)


def _of_another_family(stack: ServingStack, release: Release, form: Form, layout: Literal["hf", "mp"]) -> Judgement:
    """What is claimed of the stack and a family whose loaders were not written down; unknown if nothing is."""
    family = release.model.model_type
    if layout in stack.layouts:
        return _by_claim(stack, form, stack.claim(form, family), None, (), ())
    why = f"it reads releases of layout {' and '.join(stack.layouts)}, not {layout}"
    return Judgement(stack.id, form, "refused", "verified", (why,), (), (), None)


def summary(findings: Iterable[Finding]) -> list[str]:
    """One sentence for all findings of one kind: the first of them, and how many more there are.

    V4-Pro has 70,000 scales of experts, and all are found wrong together.
    """
    first: dict[tuple[str, str], Finding] = {}
    more: dict[tuple[str, str], int] = {}
    for finding in findings:
        key = (finding.kind, skeleton(finding.words)[0])
        first.setdefault(key, finding)
        more[key] = more.get(key, -1) + 1
    return [f"{finding}{f' (and {more[key]:,} more)' if more[key] else ''}" for key, finding in first.items()]


def _by_claim(
    stack: ServingStack,
    form: Form,
    claim: Claim,
    done: Replay | None,
    flags: tuple[str, ...],
    environment: tuple[str, ...],
) -> Judgement:
    why = [claim.why] if claim.why else []
    if claim.verdict != "loads":
        verdict: Verdict = "silently wrong" if claim.verdict == "wrong" else claim.verdict
        return Judgement(stack.id, form, verdict, claim.mark, tuple(why), (), (), done)
    why += summary(finding for finding in (done.findings if done else ()) if finding.kind == "note")
    all_flags = tuple(dict.fromkeys((*claim.flags, *flags)))
    all_variables = tuple(dict.fromkeys((*claim.environment, *environment)))
    verdict = "loads with flags" if all_flags or all_variables else "loads"
    return Judgement(stack.id, form, verdict, claim.mark, tuple(why), all_flags, all_variables, done)


def _attempts(loader: Loader, release: Release) -> Iterator[_Attempt]:
    """Replays with the defaults, then with ever more switches changed, then with overrides; up to one that loads."""
    configs: list[tuple[Release, tuple[str, ...]]] = [(release, ())]
    configs += [
        (dataclasses.replace(release, config={**release.config, **override.sets}), (override.flag,))
        for override in loader.overrides
        if any(release.config.get(key) is None for key in override.sets)
    ]
    for changed, flags in configs:
        for environment in _environments(loader):
            done = replay(loader, changed, environment)
            attempt = _Attempt(
                _outcome(done), done, flags, tuple(f"{name}={value}" for name, value in environment.items())
            )
            yield attempt
            if attempt.outcome == "loads":
                return


def _environments(loader: Loader) -> Iterator[Environment]:
    for count in range(len(loader.switches) + 1):
        for names in combinations(loader.switches, count):
            yield {name: loader.switches[name].other for name in names}


def _outcome(done: Replay) -> Literal["loads", "wrong", "refused", "unknown"]:
    kinds = {finding.kind for finding in done.findings}
    if "refused" in kinds:
        return "refused"
    if "unknown" in kinds:
        return "unknown"
    return "wrong" if kinds & _WRONG else "loads"


def _best(attempts: list[_Attempt]) -> _Attempt:
    """The attempt that loads; else one that is wrong without a word, which is worse to leave unsaid; else the first."""
    for outcome in ("loads", "wrong"):
        for attempt in attempts:
            if attempt.outcome == outcome:
                return attempt
    return attempts[0]

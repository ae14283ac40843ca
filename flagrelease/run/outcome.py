"""How a run ended: its verdict, the same in words, and its exit code."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.records.night import NightVerdict
from flagrelease.run.request import STAGES, RunRequest, StageName
from flagrelease.run.steps import ChipRun

_DONE: dict[StageName, str] = {
    "convert": "converted", "verify": "proved", "validate": "validated", "publish": "published",
}  # fmt: skip
_KINDS: tuple[tuple[NightVerdict, str], ...] = (("failed", "failed"), ("cannot-tell", "without a verdict"),
                                                ("stopped", "not finished"))  # fmt: skip
_NAMED = 3  # releases in a sentence


def exit_code(runs: Sequence[ChipRun]) -> int:
    """That of the first chip that could not be finished; 0 if all came as far as asked."""
    return next((step.exit_code for run in runs for step in run.steps.values() if step.exit_code), 0)


def verdict(runs: Sequence[ChipRun]) -> NightVerdict:
    """The worst of all, or that there was nothing to do."""
    statuses = {step.status for run in runs for step in run.steps.values()}
    for kind, _ in _KINDS:
        if kind in statuses:
            return kind
    if "planned" in statuses:
        return "planned"
    return "nothing-to-do" if all(run.was_idle for run in runs) else "done"


def summary(request: RunRequest, runs: Sequence[ChipRun]) -> str:
    """One sentence: "nothing to do: 15 releases of 8 chips are published"."""
    all_, done = _counted(runs), _DONE[request.until]
    whole = [run for run in runs if run.goes_on and request.until in run.steps]
    if len(whole) == len(runs):
        if verdict(runs) == "planned":
            return f"{all_}: publications are planned; --yes publishes them"
        busy = sum(not run.was_idle for run in runs)
        if not busy:
            return f"nothing to do: {all_} are {done}"
        return f"{all_} are {done}; there was something to do for {busy} of them"
    parts = [f"{len(whole)} of {all_} are {done}"]
    for kind, words in _KINDS:
        found = [run for run in runs if kind in {step.status for step in run.steps.values()}]
        if found:
            named = ", ".join(f"{run.chip.id} {run.folder.name} ({list(run.steps)[-1]})" for run in found[:_NAMED])
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            parts.append(f"{len(found)} {words}: {named}{more}")
    return "; ".join(parts)


def _counted(runs: Sequence[ChipRun]) -> str:
    chips = len({run.chip.id for run in runs})
    return f"{len(runs)} release{'s'[: len(runs) != 1]} of {chips} chip{'s'[: chips != 1]}"


def asked_stages(request: RunRequest) -> list[StageName]:
    """The stages that were asked for, in order."""
    return [stage for stage in STAGES if request.wants(stage)]

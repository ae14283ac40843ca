"""Files and weights against the source, read once a release: the first two stages of a validation.

What they showed holds for every chip that gets the release, and is handed to all of their validations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flagrelease.console import Display
from flagrelease.records.rules import StageName
from flagrelease.run.steps import ChipRun, RunStep, failed
from flagrelease.validate.stages.preconditions import prepare
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.run import file_runners, open_state, validate
from flagrelease.validate.stages.stage import Outcome


def verify(runs: Sequence[ChipRun]) -> None:
    """Verify the release that all of `runs` get, and record the step of each.

    Raises:
        FlagReleaseError: the release cannot be judged, or its folder of validation is of something else.
    """
    first, *others = [replace(run.asked, until="weights", baseline=None) for run in runs]
    rests_on = {stage.name: stage.inputs() for stage in file_runners(first)}  # of one release and one source
    shown = _finished(first, rests_on)
    if len(shown) < len(rests_on):
        with Display() as display:
            validate(prepare(first), display)
        shown = _finished(first, rests_on)
    for other in others:
        with open_state(other, {}) as state:
            for outcome in shown:
                if state.finished(outcome.stage.name, rests_on[outcome.stage.name]) is None:
                    state.finish(outcome)
    broken = "; ".join(outcome.stage.detail for outcome in shown if outcome.stage.verdict == "fail")
    for run in runs:
        run.steps["verify"] = failed(broken) if broken else RunStep("done", shown[-1].stage.detail)


def _finished(request: ValidationRequest, rests_on: Mapping[StageName, dict[str, str]]) -> list[Outcome]:
    """What the folder of a validation has of the two stages. `validate` adds the machine to what the folder knows."""
    with open_state(request, {}) as state:
        outcomes = [state.finished(stage.name, rests_on[stage.name]) for stage in file_runners(request)]
    return [outcome for outcome in outcomes if outcome is not None]

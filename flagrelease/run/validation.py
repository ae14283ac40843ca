"""The validation of one chip: how it is asked for, why it is done again, and where it is run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flagrelease.console import Display
from flagrelease.device import Device
from flagrelease.errors import ResourceError
from flagrelease.run.baseline import baseline_folder, needs_model
from flagrelease.run.history import of_release, put_away_validation
from flagrelease.run.judgement import judge
from flagrelease.run.on_ranks import run_on_ranks, shared_options
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun, RunStep
from flagrelease.validate.stages.environment import describe_environment
from flagrelease.validate.stages.former import Former, Inputs, model_inputs, read_former
from flagrelease.validate.stages.port import find_device
from flagrelease.validate.stages.preconditions import prepare
from flagrelease.validate.stages.request import ValidationRequest, default_out, rules_of
from flagrelease.validate.stages.run import open_state, validate
from flagrelease.validate.stages.stage import FILE_STAGES

_FIRST = "it was not validated yet"


def validation_request(request: RunRequest, run: ChipRun, source: Path | None) -> ValidationRequest:
    """The validation of one chip, as `flagrelease validate` would be asked for it.

    Raises:
        UsageError: the release was made by another recipe.
    """
    rules = rules_of(request.path, request.recipe, run.release, run.chip)
    with_model = needs_model(rules)
    return ValidationRequest(
        release=run.release,
        chip=run.chip,
        rules=rules,
        out=default_out(run.release.folder, run.chip),
        recipe=request.path,
        source=source,
        baseline=baseline_folder(request) if with_model else None,
        data=request.data,
        until=None if with_model else "weights",
        device=request.device,
        operators=request.operators,
        workers=request.workers,
    )


def validate_chip(request: RunRequest, run: ChipRun, inputs: Inputs) -> RunStep:
    """Validate one chip's release: in this process, or on as many ranks as the release is cut for.

    What was finished under the same rules and inputs is not done again, whatever else of them changed.

    Raises:
        FlagReleaseError: it could not be run.
    """
    asked, ranks = run.asked, run.release.ranks
    environment = _environment(asked)
    why = _begin(request, run, inputs, environment)
    if ranks == 1 or asked.until in FILE_STAGES:  # files are read by one process
        with Display() as display:
            validate(prepare(asked), display)
        return replace(judge(asked), why=why)
    words = ["validate", str(asked.release.folder), "--chip", run.chip.id]
    words += [] if asked.source is None else ["--source", str(asked.source)]
    words += ["--baseline", str(asked.baseline), "--out", str(asked.out), *shared_options(request)]
    if ranks > run.chip.cards_per_node:
        raise ResourceError(
            f"{run.release.folder.name} takes {ranks} ranks, a node of {run.chip.id} has {run.chip.cards_per_node} "
            f"cards: run `flagrelease {shlex.join(words)}` by torchrun on its nodes, then this command again"
        )
    run_on_ranks(ranks, words)
    return replace(judge(asked), why=why)


def _environment(asked: ValidationRequest) -> Mapping[str, str]:
    """The machine that would work in the folder, as `validate` records it."""
    if asked.baseline is None:
        return describe_environment(None)
    device = find_device(asked.chip, asked.device, anywhere=asked.rules.device == "any")
    return describe_environment(device if isinstance(device, Device) else None)


def _begin(request: RunRequest, run: ChipRun, inputs: Inputs, environment: Mapping[str, str]) -> str:
    """Put away a validation that does not answer what is asked, take over what does; returns why it is done."""
    asked, now = run.asked, inputs | model_inputs(run.asked)
    former, put_away = read_former(asked.out), of_release(request.out, asked.out.name)
    if former is not None and (found := _reasons(former, asked, now, environment)):
        run.history.append(put_away_validation(request.out, asked.out))
        why = found
    elif former is not None and former.report is not None:
        why = "it came to no verdict yet"
    else:  # nothing, or what the verification of the files left
        old = read_former(put_away[0]) if put_away else None
        why = _reasons(old, asked, now, environment) or _FIRST
    _take_over(request, asked, now, environment)
    return why


def _reasons(former: Former | None, asked: ValidationRequest, now: Inputs, environment: Mapping[str, str]) -> str:
    if former is None:
        return ""
    found = former.reasons(asked, now)
    if not former.decided and (moved := _moved(former, environment)):
        found.append(f"it was begun on another machine ({moved})")
    return "; ".join(found)


def _moved(former: Former, environment: Mapping[str, str]) -> str:
    """What is another here than where the stages so far were run."""
    names = [name for name in former.facts.keys() & environment.keys() if former.facts[name] != environment[name]]
    return ", ".join(f"{name} {former.facts[name]} -> {environment[name]}" for name in sorted(names))


def _take_over(request: RunRequest, asked: ValidationRequest, now: Inputs, environment: Mapping[str, str]) -> None:
    """Finished stages of the newest validation that was put away, where nothing that they rest on has changed."""
    put_away = of_release(request.out, asked.out.name)
    old = read_former(put_away[0]) if put_away else None
    if old is None:
        return
    here = read_former(asked.out)
    kept = {
        name: outcome
        for name in old.outcomes
        if (here is None or name not in here.outcomes)
        and (outcome := old.still_true(asked, name, now)) is not None
        and (outcome.stage.verdict == "pass" if name in FILE_STAGES else not _moved(old, environment))
    }
    if not kept:
        return
    facts = environment if kept.keys() - set(FILE_STAGES) else {}
    with open_state(asked, facts) as state:
        for outcome in kept.values():
            state.finish(outcome)

"""Files and weights against the source, read once a release: the first two stages of a validation.

What they showed holds for every chip that gets the release, and is handed to all of their validations. It is shown
again when a file of the release was written since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flagrelease.console import Display
from flagrelease.errors import ResourceError
from flagrelease.run.history import of_release, put_away_validation
from flagrelease.run.records import Proved, differing, read_record, stamps_of, write_record
from flagrelease.run.steps import ChipRun, RunStep, failed
from flagrelease.validate.stages.file_stages import IntegrityStage
from flagrelease.validate.stages.former import Inputs, read_former
from flagrelease.validate.stages.preconditions import prepare
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.run import file_runners, open_state, validate
from flagrelease.validate.stages.stage import FILE_STAGES, Outcome


def file_inputs(identity: str) -> Inputs:
    """What the two stages rest on besides the release; `identity` is the digest of the source's identity."""
    return {"integrity": {}, "weights": {"source": identity}}


def verify(runs: Sequence[ChipRun], out: Path, identity: str) -> None:
    """Verify the release that all of `runs` get, and record the step of each.

    Raises:
        FlagReleaseError: the release cannot be judged, or another process works in a folder of its validations.
    """
    inputs, release, name = file_inputs(identity), runs[0].release, f"verify-{runs[0].release.folder.name}"
    asked = [replace(run.asked, until="weights", baseline=None) for run in runs]
    stamps = stamps_of(release.folder, (file.path for file in release.manifest.files))
    before = read_record(Proved, out, name)
    proved_these = before is not None and before.manifest_sha256 == release.manifest_sha256
    written = differing(before.files, stamps) if before is not None and proved_these else []

    _put_away_others(runs, out, inputs)
    shown, why = _shown(asked, out, inputs), ""
    if written and _failed(shown):
        why = f"it was wrong, and {_named(written)} since"
        for run in runs:
            _put_away(run, out)
        shown = []
    elif written and shown:
        why = f"{_named(written)} since it was proved"
        with Display() as display:
            again = IntegrityStage(asked[0]).run(display)
        if _failed([again]):
            for run in runs:
                run.steps["verify"] = replace(failed(f"{why}: {again.stage.detail}"), why=why)
            return
    if len(shown) < len(FILE_STAGES) and not _failed(shown):
        why = why or "its files and weights were not proved yet"
        shown = _show(asked[0], inputs)
    _hand_on(asked, shown, inputs)
    if why or not proved_these:
        write_record(Proved(manifest_sha256=release.manifest_sha256, files=stamps), out, name)
    broken = "; ".join(outcome.stage.detail for outcome in shown if outcome.stage.verdict == "fail")
    if broken and why:  # the page of a release that is wrong says so
        for one in asked:
            validate(prepare(one), Display(quiet=True))
    for run in runs:
        step = failed(broken) if broken else RunStep("done", shown[-1].stage.detail)
        run.steps["verify"] = replace(step, why=why)


def require_proved(run: ChipRun, out: Path) -> None:
    """Refuse to validate a release whose weights nobody compared with their source: where that is, it comes first.

    Raises:
        ResourceError: there is no such outcome in the folder of its validation, nor in the one put away last.
    """
    wanted = file_inputs(run.release.manifest.source.identity)
    shown = _shown([run.asked], out, wanted)
    if len(shown) < len(FILE_STAGES) or _failed(shown) or shown[-1].inputs != wanted["weights"]:
        raise ResourceError(
            f"{run.folder.name}: {run.asked.out} does not say that its weights are those of the source; run with "
            f"--until verify where the checkpoint is, and bring {run.folder.name}/ and validation/ from there"
        )


def _named(written: Sequence[str]) -> str:
    others = f" and {len(written) - 1} other files were" if len(written) > 1 else " was"
    return f"{written[0]}{others} written"


def _failed(shown: Sequence[Outcome]) -> bool:
    return any(outcome.stage.verdict == "fail" for outcome in shown)


def _put_away_others(runs: Sequence[ChipRun], out: Path, inputs: Inputs) -> None:
    """A validation of another manifest or under other rules goes into the history before it is begun again."""
    for run in runs:
        former = read_former(run.asked.out)
        if former is not None and former.reasons(run.asked, inputs):
            _put_away(run, out)


def _put_away(run: ChipRun, out: Path) -> None:
    if run.asked.out.exists():
        run.history.append(put_away_validation(out, run.asked.out))


def _shown(asked: Sequence[ValidationRequest], out: Path, inputs: Inputs) -> list[Outcome]:
    """What was shown of the release before: in the folder of a validation, or in one that was put away."""
    best: list[Outcome] = []
    for one in asked:
        here = read_former(one.out)
        former = here
        if former is None and (put_away := of_release(out, one.out.name)):
            former = read_former(put_away[0])
        if former is None:
            continue
        found = [former.still_true(one, name, inputs) for name in FILE_STAGES]
        outcomes = [outcome for outcome in found if outcome is not None]
        if here is None and _failed(outcomes):
            continue  # it was put away because its files were written since
        best = max(best, outcomes, key=len)
    return best


def _show(asked: ValidationRequest, inputs: Inputs) -> list[Outcome]:
    """Run the stages that are not finished. The folder does not learn of this machine: the model may run on another."""
    shown = []
    with open_state(asked, {}) as state, Display() as display:
        for runner in file_runners(asked):
            shown.append(state.finished(runner.name, inputs[runner.name]) or state.finish(runner.run(display)))
            if _failed(shown):
                break
    return shown


def _hand_on(asked: Sequence[ValidationRequest], shown: Sequence[Outcome], inputs: Inputs) -> None:
    for one in asked:
        former = read_former(one.out)
        if former is not None and all(outcome.stage.name in former.outcomes for outcome in shown):
            continue
        with open_state(one, {}) as state:
            for outcome in shown:
                if state.finished(outcome.stage.name, inputs[outcome.stage.name]) is None:
                    state.finish(outcome)

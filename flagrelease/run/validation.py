"""The stages in the middle: files and weights once a release, the rest once a chip.

`verify` is the first two stages of a validation, so that a release is read once for both. What they showed holds for
every chip that gets the release, and is handed to their validations.
"""

from __future__ import annotations

import hashlib
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from flagrelease.errors import FlagReleaseError, ResourceError, VerificationError
from flagrelease.ranks.launch import launch
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest
from flagrelease.records.report import Report, parse_report
from flagrelease.records.rules import StageName, ValidationRules
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun, RunStep
from flagrelease.validate.stages.display import Display
from flagrelease.validate.stages.file_stages import IntegrityStage, WeightsStage
from flagrelease.validate.stages.record import Recording, record
from flagrelease.validate.stages.request import ValidationRequest, choose_rules, default_out
from flagrelease.validate.stages.run import FILE_STAGES, PAGE_NAME, REPORT_NAME, validate
from flagrelease.validate.stages.stage import Outcome, StageRunner
from flagrelease.validate.stages.state import Binding, State, rules_sha256

CANNOT_TELL = 7  # exit code of `validate`
_INTERRUPTED = 130  # exit code of any command


def validation_request(
    request: RunRequest, run: ChipRun, source: Path, until: StageName | None = None
) -> ValidationRequest:
    """The validation of one chip, as `flagrelease validate` would be asked for it."""
    rules = choose_rules(request.path, read_manifest(run.release), run.chip)
    if not needs_model(rules):
        until = "weights"
    return ValidationRequest(
        release=run.release,
        chip=run.chip,
        rules=rules,
        out=default_out(run.release, run.chip),
        recipe=request.path,
        source=source,
        baseline=None if until in FILE_STAGES else baseline_folder(request),
        data=request.data,
        until=until,
        device=request.device,
        operators=request.operators,
        workers=request.workers,
    )


def needs_model(rules: ValidationRules) -> bool:
    """Whether a pass needs a stage that runs the model."""
    return not set(rules.stages) <= set(FILE_STAGES)


def baseline_folder(request: RunRequest) -> Path:
    """Made elsewhere, or here."""
    return request.baseline or request.out / "baseline"


def verify(request: RunRequest, runs: Sequence[ChipRun], source: Path) -> None:
    """Files and weights of one release, which all of `runs` get, against the source.

    Raises:
        FlagReleaseError: the release cannot be judged, or its folder of validation is of something else.
    """
    first, *others = [validation_request(request, run, source, "weights") for run in runs]
    stages = _file_stages(first)
    if not all(stages):
        with Display() as display:
            validate(first, display)
        stages = _file_stages(first)
    outcomes = [outcome for outcome in stages if outcome is not None]
    for other in others:
        state = _state(other)
        for outcome, there in zip(outcomes, _file_stages(other), strict=False):
            if there is None:
                state.finish(outcome)
    failed = "; ".join(o.stage.detail for o in outcomes if o.stage.verdict == "fail")
    for run in runs:
        run.steps["verify"] = _failed(failed) if failed else RunStep("done", outcomes[-1].stage.detail)


def _state(request: ValidationRequest) -> State:
    """The folder of a validation, begun or found; the machine is added by `validate`."""
    manifest_sha256 = hashlib.sha256((request.release / MANIFEST_NAME).read_bytes()).hexdigest()
    binding = Binding(
        manifest_sha256=manifest_sha256,
        chip=request.chip.id,
        rules_sha256=rules_sha256(request.rules),
        environment={},
    )
    return State.open(request.out, binding)


def _file_stages(request: ValidationRequest) -> list[Outcome | None]:
    state, manifest = _state(request), read_manifest(request.release)
    runners: tuple[StageRunner, ...] = (IntegrityStage(request, manifest), WeightsStage(request, manifest))
    return [state.finished(runner.name, runner.inputs()) for runner in runners]


def record_baseline(request: RunRequest, runs: Sequence[ChipRun], source: Path) -> None:
    """What the native model gives, unless it was made elsewhere; on as many ranks as the first chip's release has.

    Raises:
        FlagReleaseError: as recording does.
    """
    if request.baseline is not None or not needs_model(request.recipe.validation):
        return
    folder = baseline_folder(request)
    ranks = _ranks(runs[0])
    if ranks == 1:
        recording = Recording(
            source=source,
            out=folder,
            rules=request.recipe.validation,
            data=request.data,
            documents=request.documents,
            device=request.device,
            operators=request.operators,
        )
        with Display() as display:
            record(recording, display)
        return
    words = ["baseline", "record", str(source), "--out", str(folder), *_common(request)]
    words += [] if request.documents is None else ["--documents", str(request.documents)]
    _on_ranks(ranks, words)


def earlier_validation(request: RunRequest, run: ChipRun, source: Path) -> RunStep | None:
    """What a report says that is there already, if it decides: a pass or a failure is not tried again.

    Raises:
        ResourceError: the report is of another release, chip or set of rules.
        VerificationError: it is no report.
    """
    asked = validation_request(request, run, source)
    path = asked.out / REPORT_NAME
    if not path.is_file():
        return None
    _state(asked)  # refuses a folder of something else
    step = _judge(asked, parse_report(path.read_bytes(), str(path)))
    return None if step.status == "cannot-tell" else step


def validate_chip(request: RunRequest, run: ChipRun, source: Path) -> RunStep:
    """The whole validation of one chip.

    Raises:
        FlagReleaseError: it could not be run.
    """
    asked = validation_request(request, run, source)
    _run_validation(request, run, asked)
    path = asked.out / REPORT_NAME
    if not path.is_file():
        raise ResourceError(f"{path}: was not written")
    return _judge(asked, parse_report(path.read_bytes(), str(path)))


def _judge(asked: ValidationRequest, report: Report) -> RunStep:
    manifest = hashlib.sha256((asked.release / MANIFEST_NAME).read_bytes()).hexdigest()
    if (report.manifest_sha256, report.chip, report.rules) != (manifest, asked.chip.id, asked.rules):
        raise ResourceError(f"{asked.out / REPORT_NAME}: is of another release, chip or set of rules")
    if report.verdict == "pass":
        passed = ", ".join(stage.name for stage in report.stages if stage.verdict == "pass")
        others = "".join(f"; {stage.name}: {stage.verdict}" for stage in report.stages if stage.verdict != "pass")
        return RunStep("done", f"{passed}: pass{others}; {asked.out / PAGE_NAME}")
    if report.verdict == "fail":
        return _failed("; ".join(stage.detail for stage in report.stages if stage.verdict == "fail"))
    open_ = [stage for stage in report.stages if stage.verdict in ("cannot-tell", "not-run")]
    return RunStep("cannot-tell", "; ".join(f"{stage.name}: {stage.detail}" for stage in open_), CANNOT_TELL)


def _run_validation(request: RunRequest, run: ChipRun, asked: ValidationRequest) -> None:
    ranks = _ranks(run)
    if ranks == 1 or asked.until in FILE_STAGES:  # files are read by one process
        with Display() as display:
            validate(asked, display)
        return
    words = ["validate", str(asked.release), "--chip", run.chip.id, "--source", str(asked.source)]
    words += ["--baseline", str(asked.baseline), "--out", str(asked.out), *_common(request)]
    if ranks > run.chip.cards_per_node:
        raise ResourceError(
            f"{run.release.name} takes {ranks} ranks, a node of {run.chip.id} has {run.chip.cards_per_node} cards: run "
            f"`flagrelease {shlex.join(words)}` by torchrun on its nodes, then this command again"
        )
    _on_ranks(ranks, words)


def _common(request: RunRequest) -> list[str]:
    words = ["--recipe", str(request.path), "--device", request.device, "--operators", request.operators]
    return words + [
        word for name, paths in request.data.items() for path in paths for word in ("--data", f"{name}={path}")
    ]


def _on_ranks(ranks: int, words: list[str]) -> None:
    """Run a command of this program on ranks of this machine. What it says goes to stderr.

    Raises:
        FlagReleaseError: the command's own refusal, with its exit code. A verdict is none: it is in the report.
        KeyboardInterrupt: the command was interrupted.
    """
    status = launch(words, ranks, to_stderr=True)
    if status.message is not None:
        raise status.as_error()
    if status.exit_code in (_INTERRUPTED, 128 + signal.SIGTERM):
        raise KeyboardInterrupt
    if status.exit_code not in (0, VerificationError.exit_code, CANNOT_TELL):
        raise FlagReleaseError(f"`flagrelease {words[0]}` ended with exit code {status.exit_code}; see above")


def _ranks(run: ChipRun) -> int:
    return read_manifest(run.release).target.mp or 1


def _failed(detail: str) -> RunStep:
    return RunStep("failed", detail, VerificationError.exit_code)

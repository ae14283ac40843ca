"""What the report of a validation says about a chip, as the step of a run; and whether it answers what is asked now."""

from __future__ import annotations

from flagrelease.errors import ResourceError
from flagrelease.records.report import Report, parse_report
from flagrelease.run.steps import CANNOT_TELL, RunStep, failed
from flagrelease.validate.stages.former import Inputs, model_inputs, read_former
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.run import PAGE_NAME, REPORT_NAME


def earlier_judgement(asked: ValidationRequest, inputs: Inputs) -> RunStep | None:
    """What a report that is there already says, if it decides: a pass or a failure is not tried again.

    Args:
        asked: what would be validated.
        inputs: what the verdicts on files rest on.

    Raises:
        VerificationError: the folder of the validation is damaged.
    """
    former = read_former(asked.out)
    if former is None or former.report is None or former.reasons(asked, inputs | model_inputs(asked)):
        return None
    step = judge(asked)
    return None if step.status == "cannot-tell" else step


def judge(asked: ValidationRequest) -> RunStep:
    """What the report of a finished validation says.

    Raises:
        ResourceError: there is none, or it is of another release, chip or set of rules.
        VerificationError: it is no report.
    """
    path = asked.out / REPORT_NAME
    if not path.is_file():
        raise ResourceError(f"{path}: was not written")
    report = parse_report(path.read_bytes(), str(path))
    if (report.manifest_sha256, report.chip, report.rules) != (
        asked.release.manifest_sha256,
        asked.chip.id,
        asked.rules,
    ):
        raise ResourceError(f"{path}: is of another release, chip or set of rules")
    return _step(asked, report)


def _step(asked: ValidationRequest, report: Report) -> RunStep:
    if report.verdict == "pass":
        passed = ", ".join(stage.name for stage in report.stages if stage.verdict == "pass")
        others = "".join(f"; {stage.name}: {stage.verdict}" for stage in report.stages if stage.verdict != "pass")
        return RunStep("done", f"{passed}: pass{others}; {asked.out / PAGE_NAME}")
    if report.verdict == "fail":
        return failed("; ".join(stage.detail for stage in report.stages if stage.verdict == "fail"))
    undecided = [stage for stage in report.stages if stage.verdict in ("cannot-tell", "not-run")]
    return RunStep("cannot-tell", "; ".join(f"{stage.name}: {stage.detail}" for stage in undecided), CANNOT_TELL)

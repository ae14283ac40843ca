"""What the folder of a validation holds, read without beginning or resuming the validation: `run` asks whether its
verdict still answers what is asked, and which of its stages do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flagrelease.durable.folder import BEGUN_NAME, Begun
from flagrelease.errors import VerificationError
from flagrelease.records.changes import changes, in_a_sentence
from flagrelease.records.report import Report, parse_report
from flagrelease.records.rules import STAGES, StageName, ValidationRules
from flagrelease.validate.baseline import BaselineFolder
from flagrelease.validate.stages.preconditions import NativeAnswers, Prepared
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.run import REPORT_NAME, model_runners
from flagrelease.validate.stages.stage import FILE_STAGES, Outcome
from flagrelease.validate.stages.state import CONTROL, rules_sha256

_OF_THE_ANSWERER = frozenset({"answerer", "operators", "look at layers", "variants"})
_HUB = "hub"  # questions of a benchmark that no file was given for
_NOT_LOOKED_FOR = "a device was not looked for"
Inputs = dict[StageName, dict[str, str]]  # what the verdict of each stage rests on


@dataclass(frozen=True, slots=True)
class Former:
    """What is there.

    Attributes:
        binding, facts: what the folder was begun for, and the machine that worked there.
        outcomes: of the finished stages.
        report: None where the validation came to no end.
    """

    binding: dict[str, str]
    facts: dict[str, str]
    outcomes: dict[StageName, Outcome]
    report: Report | None

    def reasons(self, asked: ValidationRequest, inputs: Inputs) -> list[str]:
        """Why it does not answer what is asked now, as sentences: another release, other rules, other inputs."""
        found = []
        if self.binding.get("release") != asked.release.manifest_sha256:
            found.append("the release has another manifest")
        if self.binding.get("set of rules") != rules_sha256(asked.rules):
            found.append(f"the rules changed{self._changed_rules(asked.rules)}")
        for name, outcome in self.outcomes.items():
            differs = outcome.differences(inputs.get(name, outcome.inputs))
            if self.decided:
                differs = [key for key in differs if _is_of_what_is_asked(key, outcome.inputs, inputs[name])]
            if differs:
                found.append(f"{name} rests on another {' and another '.join(differs)}")
        return found

    @property
    def decided(self) -> bool:
        """Whether there is a verdict; one that was asked of another server or by other operators stands as it is."""
        return self.report is not None and self.report.verdict in ("pass", "fail")

    def _changed_rules(self, rules: ValidationRules) -> str:
        if self.report is None:
            return ""
        found = changes(self.report.rules.model_dump(mode="json"), rules.model_dump(mode="json"))
        return f" ({in_a_sentence(found)})"

    def still_true(self, asked: ValidationRequest, name: StageName, inputs: Inputs) -> Outcome | None:
        """The outcome of a stage, if it would be the same stage under what is asked now: same release, chip, rules of
        its own, and inputs."""
        outcome = self.outcomes.get(name)
        same = (self.binding.get("release"), self.binding.get("chip")) == (asked.release.manifest_sha256, asked.chip.id)
        if outcome is None or not same or name not in inputs or outcome.differences(inputs[name]):
            return None
        if name in FILE_STAGES:
            return outcome  # no rule is about them
        if self.report is None or own_rules(self.report.rules, name) != own_rules(asked.rules, name):
            return None
        return outcome


def _is_of_what_is_asked(key: str, was: dict[str, str], now: dict[str, str]) -> bool:
    """Whether an input is about the question and not about who answered. The hub's data may be the same as a file's."""
    return key not in _OF_THE_ANSWERER and _HUB not in (was.get(key), now.get(key))


def own_rules(rules: ValidationRules, name: StageName) -> dict[str, object]:
    """What a stage follows: the rules of its name, and which devices count."""
    return {"device": rules.device, "own": rules.model_dump(mode="json").get(name.replace("-", "_"))}


def read_former(folder: Path) -> Former | None:
    """Read the folder of a validation; None if none was begun there.

    Raises:
        VerificationError: something in it is damaged or of another version.
    """
    path = folder / CONTROL / BEGUN_NAME
    if not path.is_file():
        return None
    try:
        begun = Begun.model_validate_json(path.read_bytes())
        outcomes = {
            name: Outcome.model_validate_json(file.read_bytes())
            for name in STAGES
            if (file := folder / CONTROL / f"{name}.json").is_file()
        }
        report = folder / REPORT_NAME
        parsed = parse_report(report.read_bytes(), REPORT_NAME) if report.is_file() else None
    except (ValidationError, VerificationError) as error:
        said = f" ({error})" if isinstance(error, VerificationError) else ""
        raise VerificationError(f"{folder}: is damaged or of another version{said}; move it away") from error
    return Former(begun.binding, begun.facts, outcomes, parsed)


def model_inputs(asked: ValidationRequest) -> Inputs:
    """What the verdicts of the stages that run the model would rest on now, without a device and without loading one.

    A stage that the baseline has nothing for is left out: nothing can be said of it.
    """
    baseline = None if asked.baseline is None else BaselineFolder(asked.baseline)
    ready = Prepared(asked, baseline, _NOT_LOOKED_FOR, {}, NativeAnswers())
    return {
        runner.name: runner.inputs()
        for runner in model_runners(ready, _NOT_LOOKED_FOR)
        if runner.missing() in (None, _NOT_LOOKED_FOR)
    }

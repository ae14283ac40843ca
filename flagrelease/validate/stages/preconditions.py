"""What a validation needs, read and compared before its first stage: a file of the last stage must not be found broken
after the hours of the stages before it."""

from __future__ import annotations

from collections.abc import Iterable

from flagrelease.errors import VerificationError
from flagrelease.extras import require_extra
from flagrelease.records.rules import ValidationRules
from flagrelease.validate.baseline import BaselineFolder, refuse_other_model
from flagrelease.validate.behaviour.answers import Behaviour
from flagrelease.validate.exams.exam import read_exam
from flagrelease.validate.exams.side import Side, refuse_other_rules
from flagrelease.validate.stages.asking import open_exam
from flagrelease.validate.stages.request import Data


def require_data(data: Data, rules: ValidationRules) -> None:
    """Read every file of questions that a user gave.

    Raises:
        UsageError: one is missing or malformed; names the file, the line and what it lacks.
    """
    for name, paths in data.items():
        read_exam(rules.benchmarks[name], paths)


def require_questions(names: Iterable[str], data: Data, rules: ValidationRules) -> None:
    """Read the questions of benchmarks that are going to be asked; those without a file of the user's from the hub.

    The hub's client keeps what it downloads, so the benchmarks read the same files again later.

    Raises:
        UsageError: a file is missing or malformed, or lacks a field.
        NetworkError: the hub has no such dataset, revision or file, or does not give it.
    """
    for name in names:
        open_exam(name, rules.benchmarks[name], data)


def require_comparable(baseline: BaselineFolder, rules: ValidationRules, identity: str) -> None:
    """Read the answers that a baseline holds, and refuse those that this release cannot be compared with.

    Args:
        identity: the digest of the source that the release was made of.

    Raises:
        VerificationError: answers of another model, under other rules, or no answers at all.
    """
    for name, benchmark in rules.benchmarks.items():
        path = baseline.answers(name)
        if path.is_file():
            side = Side.read(path)
            refuse_other_model(path, side.subject, identity)
            refuse_other_rules(side, benchmark, "native")
    if baseline.behaviour.is_file():
        recorded = Behaviour.read(baseline.behaviour)
        refuse_other_model(baseline.behaviour, recorded.subject, identity)
        if recorded.rules != rules.behaviour:
            raise VerificationError(f"{baseline.behaviour}: was recorded under other rules of behaviour")


def require_packages(rules: ValidationRules) -> None:
    """The packages of the stages that run a model.

    Raises:
        ResourceError: one is not installed; the message has the command that installs it.
    """
    require_extra("engine", "running the model")
    if rules.benchmarks:
        require_extra("eval", "asking the benchmarks")

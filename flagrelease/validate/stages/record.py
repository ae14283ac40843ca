"""`record`: the native side of a validation, made where the source runs and carried to the chip's machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.device import open_device
from flagrelease.errors import UsageError, VerificationError
from flagrelease.ranks.job import is_leader
from flagrelease.records.rules import ValidationRules
from flagrelease.records.source_identity import identify
from flagrelease.validate.baseline import BaselineFolder, refuse_other_model, subject_of_source
from flagrelease.validate.behaviour.answers import Behaviour
from flagrelease.validate.exams.comparison import plan_of
from flagrelease.validate.exams.run import run_side
from flagrelease.validate.exams.side import Side, refuse_other_rules
from flagrelease.validate.stages.asking import answering, ask_behaviour, open_exam
from flagrelease.validate.stages.choices import PARTS, Part
from flagrelease.validate.stages.port import Port
from flagrelease.validate.stages.preconditions import require_data, require_questions
from flagrelease.validate.stages.request import Data, Endpoint
from flagrelease.validate.stages.stage import Watch


@dataclass(frozen=True, slots=True)
class Recording:
    """What is to be recorded of which source, and how.

    Attributes:
        documents: a user's own set for the logits; None for the bundled one.
        endpoint: who answers the benchmarks in place of the bundled engine; whoever records says that it is the source.
        parts: of the baseline; the others can be recorded later, or on another machine into the same folder.
    """

    source: Path
    out: Path
    rules: ValidationRules
    data: Data = field(default_factory=dict)
    documents: Path | None = None
    endpoint: Endpoint | None = None
    parts: tuple[Part, ...] = PARTS
    device: str = "auto"
    operators: str = "auto"
    rows: int = 16

    def __post_init__(self) -> None:
        """Refuse data of a benchmark that the rules do not have."""
        if unknown := sorted(self.data.keys() - self.rules.benchmarks.keys()):
            raise UsageError(f"--data {unknown[0]}: the rules have no such benchmark")


def record(recording: Recording, watch: Watch) -> BaselineFolder:
    """Record what is not there yet. After a kill the same call resumes.

    Under torchrun every rank calls this and all see the folder; the first one writes.

    Raises:
        CheckpointError: the source is not a sound checkpoint.
        UsageError: data or documents that cannot be used, a device that does not exist.
        ResourceError: the folder holds another baseline's logits, or the device is not there.
        VerificationError: it holds answers of another model, or under other rules.
        NetworkError: the hub or the endpoint.
    """
    folder = BaselineFolder(recording.out)
    require_data(recording.data, recording.rules)
    identity = identify(recording.source).digest
    _refuse_another(recording, folder, identity)
    missing = [name for name in recording.rules.benchmarks if not folder.answers(name).is_file()]
    names = missing if "benchmarks" in recording.parts else []
    if is_leader():
        require_questions(names, recording.data, recording.rules)
    if "logits" in recording.parts:
        _record_logits(recording, folder, watch)
    behaviour = "behaviour" in recording.parts and not folder.behaviour.is_file()
    if not behaviour and (recording.endpoint is not None or not names):
        if is_leader():
            _record_benchmarks(recording, names, folder, identity, "the endpoint answers", watch)
        return folder
    device = open_device(recording.device)
    with Port(recording.source, "native", device, recording.operators, recording.rows) as port:
        if is_leader():
            _record_benchmarks(recording, names, folder, identity, port, watch)
            if behaviour:
                _record_behaviour(recording, folder, identity, port, watch)
        else:
            port.follow(None)
    return folder


def _refuse_another(recording: Recording, folder: BaselineFolder, identity: str) -> None:
    """What is there already is kept only if it is what would be recorded."""
    for name, rules in recording.rules.benchmarks.items():
        if "benchmarks" in recording.parts and folder.answers(name).is_file():
            side = Side.read(folder.answers(name))
            refuse_other_model(folder.answers(name), side.subject, identity)
            refuse_other_rules(side, rules, "recorded")
    if "behaviour" in recording.parts and folder.behaviour.is_file():
        recorded = Behaviour.read(folder.behaviour)
        refuse_other_model(folder.behaviour, recorded.subject, identity)
        if recorded.rules != recording.rules.behaviour:
            raise VerificationError(f"{folder.behaviour}: was recorded under other rules of behaviour")


def _record_logits(recording: Recording, folder: BaselineFolder, watch: Watch) -> None:
    from flagrelease.validate.logits.record import record_baseline

    record_baseline(
        recording.source,
        folder.logits,
        recording.rules.logits,
        documents=recording.documents,
        device=recording.device,
        operators=recording.operators,
        progress=lambda done, total: watch("logits of the source", done, total, "tokens"),
    )


def _record_benchmarks(
    recording: Recording, names: list[str], folder: BaselineFolder, identity: str, port: Port | str, watch: Watch
) -> None:
    """As many answers as the last look of the test takes: how many the chip will need is not known here."""
    for name in names:
        rules = recording.rules.benchmarks[name]
        exam = open_exam(name, rules, recording.data)
        journal = folder.work(name)
        folder.answers(name).parent.mkdir(parents=True, exist_ok=True)

        def progress(done: int, total: int, title: str = rules.title) -> None:
            watch(f"answers of the source: {title}", done, total, "answers")

        with answering(exam, recording.endpoint, port) as answerer:
            subject, repeats = subject_of_source(identity), plan_of(rules).looks[-1]
            side = run_side(exam, answerer, subject, journal, repeats, progress)
        side.save(folder.answers(name))


def _record_behaviour(recording: Recording, folder: BaselineFolder, identity: str, port: Port, watch: Watch) -> None:
    journal = folder.work("behaviour")
    journal.parent.mkdir(parents=True, exist_ok=True)
    ask_behaviour(port, subject_of_source(identity), recording.rules.behaviour, journal, watch).save(folder.behaviour)

"""`record`: records the native side of a validation where the source runs, to be carried to the chip's machine."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.console import say
from flagrelease.device import open_device
from flagrelease.engine.efforts import read_efforts
from flagrelease.errors import UsageError, VerificationError
from flagrelease.extras import require_extra
from flagrelease.model.families import read_config
from flagrelease.ranks.job import is_leader
from flagrelease.records.rules import ValidationRules
from flagrelease.records.source_identity import identify
from flagrelease.validate.baseline import BaselineFolder, refuse_other_model, subject_of_source
from flagrelease.validate.behaviour.answers import Behaviour
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.exams.comparison import plan_of
from flagrelease.validate.exams.marking.marking import CODE_NEEDS_SANDBOX, can_be_marked, require_markers
from flagrelease.validate.exams.run import run_side
from flagrelease.validate.exams.side import Side, refuse_other_rules
from flagrelease.validate.long_context.items import LengthRules, refuse_too_long
from flagrelease.validate.stages.asking import answering, ask_behaviour, open_exam
from flagrelease.validate.stages.choices import PARTS, Part
from flagrelease.validate.stages.long_context import ContextAsks
from flagrelease.validate.stages.port import Port
from flagrelease.validate.stages.preconditions import open_exams, read_continuations, read_exams
from flagrelease.validate.stages.record_continuations import UnscoredError, record_continuations
from flagrelease.validate.stages.request import Data, Exams
from flagrelease.validate.stages.stage import Watch


@dataclass(frozen=True, slots=True)
class Recording:
    """What is to be recorded of which source, and how.

    Attributes:
        documents: a user's own set for the logits; None for the bundled one.
        endpoint: a server that answers benchmarks and behaviour in place of the bundled engine. That it serves the
            source is the word of whoever records.
        sandbox: the command that runs what a model writes, for benchmarks of code.
        parts: what to record now; the others can follow later, also on another machine into the same folder.
    """

    source: Path
    out: Path
    rules: ValidationRules
    data: Data = field(default_factory=dict)
    documents: Path | None = None
    endpoint: Endpoint | None = None
    sandbox: str | None = None
    parts: tuple[Part, ...] = PARTS
    device: str = "auto"
    operators: str = "auto"
    rows: int = 16

    def __post_init__(self) -> None:
        """Refuse data of a benchmark that the rules do not have."""
        if unknown := sorted(self.data.keys() - self.rules.benchmarks.keys()):
            raise UsageError(f"--data {unknown[0]}: the rules have no such benchmark")
        if self.parts == ("long-context",) and self.rules.long_context is None:
            raise UsageError("--part long-context: the rules have no long_context")


def record(recording: Recording, watch: Watch) -> BaselineFolder:
    """Record what is not there yet. After a kill the same call resumes.

    Under torchrun every rank calls this and all see the folder; the first one writes.

    Raises:
        CheckpointError: the source is not a sound checkpoint, or one of a family that the bundled engine does not run.
        UsageError: data or documents that cannot be used, a device that does not exist.
        ResourceError: the folder holds another baseline's logits, another process records into it, or a device or
            package is missing.
        VerificationError: it holds answers of another model, or under other rules.
        NetworkError: the hub or the endpoint.
    """
    folder, parts = BaselineFolder(recording.out), recording.parts
    exams = read_exams(recording.data, recording.rules)
    identity = identify(recording.source).digest
    names = _missing_benchmarks(recording, folder) if "benchmarks" in parts else []
    behaviour = "behaviour" in parts and not folder.behaviour.is_file()
    lengths = _missing_lengths(recording, folder)
    texts = "continuations" in parts and not folder.continuations.is_file()
    on_engine = recording.endpoint is None and (behaviour or texts or bool(names or lengths))
    if "logits" in parts or texts or on_engine:
        require_extra("engine", "running the model")
    if names:
        require_extra("eval", "asking the benchmarks")
    if is_leader():
        exams = open_exams(names, exams, recording.rules)
    with folder.locked() if is_leader() else nullcontext():
        _refuse_another(recording, folder, identity)
        if "logits" in parts:
            _record_logits(recording, folder, watch)
        asks = _Asks(recording, folder, identity, exams, watch)
        if not on_engine:
            if is_leader():
                if texts:
                    asks.continuations("the endpoint answers")
                asks.long_context(lengths, "the endpoint answers")
                asks.benchmarks(names, "the endpoint answers")
                if behaviour:
                    asks.behaviour("the endpoint answers")
            return folder
        device = open_device(recording.device)
        with Port(recording.source, "native", device, recording.operators, recording.rows) as port:
            if not is_leader():
                port.follow(None)
                return folder
            if texts:
                asks.continuations(port)
            asks.long_context(lengths, port)
            asks.benchmarks(names, port)
            if behaviour:
                asks.behaviour(port)
    return folder


def _missing_benchmarks(recording: Recording, folder: BaselineFolder) -> list[str]:
    """Names of benchmarks that are to be recorded and are not there. Those of code are left out without a sandbox.

    Raises:
        UsageError: the sandbox is none.
        ResourceError: the package that compares expressions is missing.
    """
    missing = {name: each for name, each in recording.rules.benchmarks.items() if not folder.answers(name).is_file()}
    names = [name for name, each in missing.items() if can_be_marked(each.kind, recording.sandbox)]
    for name in sorted(missing.keys() - names):
        say(f"{name} is not recorded: {CODE_NEEDS_SANDBOX}")
    require_markers((missing[name].kind for name in names), recording.sandbox)
    return names


def _missing_lengths(recording: Recording, folder: BaselineFolder) -> list[int]:
    """Lengths of contexts that are to be recorded and are not there.

    Raises:
        UsageError: the model has no positions for them.
    """
    rules = recording.rules.long_context
    if "long-context" not in recording.parts or rules is None:
        return []
    config, _ = read_config(recording.source / "config.json")
    refuse_too_long(rules, config.max_position_embeddings)
    return [length for length in rules.lengths if not folder.context_answers(length).is_file()]


def _refuse_another(recording: Recording, folder: BaselineFolder, identity: str) -> None:
    """Refuse answers in the folder that are not what would be recorded."""
    for name, rules in recording.rules.benchmarks.items():
        if "benchmarks" in recording.parts and folder.answers(name).is_file():
            side = Side.read(folder.answers(name))
            refuse_other_model(folder.answers(name), side.subject, identity)
            refuse_other_rules(side, rules, "recorded")
    contexts = recording.rules.long_context
    if "long-context" in recording.parts and contexts is not None:
        for length in contexts.lengths:
            if (path := folder.context_answers(length)).is_file():
                side = Side.read(path)
                refuse_other_model(path, side.subject, identity)
                refuse_other_rules(side, LengthRules(contexts, length), "recorded")
    if "continuations" in recording.parts:
        read_continuations(folder, recording.rules.logits, identity)
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


@dataclass(frozen=True, slots=True)
class _Asks:
    """Questions and prompts to the source; `identity` is the digest of the source's identity."""

    recording: Recording
    folder: BaselineFolder
    identity: str
    exams: Exams
    watch: Watch

    def continuations(self, port: Port | str) -> None:
        """Record texts that the source writes. An endpoint that cannot score them is an error only if no other part is
        asked for."""
        recording, journal = self.recording, self.folder.work("continuations")
        try:
            record_continuations(recording, port, self.identity, journal, self.watch).save(self.folder.continuations)
        except UnscoredError as error:
            if recording.parts == ("continuations",):
                raise
            say(f"no continuations are recorded: {error}")

    def long_context(self, lengths: list[int], port: Port | str) -> None:
        """Record answers to the questions about registers, a file a length."""
        rules, source = self.recording.rules.long_context, self.recording.source
        for length in lengths:
            assert rules is not None
            asks = ContextAsks(rules, source, self.recording.endpoint, port, subject_of_source(self.identity))
            side = asks.ask_length(length, self.folder.work(f"long-context-{length}"), None, self.watch)
            self.folder.long_context.mkdir(parents=True, exist_ok=True)
            side.save(self.folder.context_answers(length))

    def benchmarks(self, names: list[str], port: Port | str) -> None:
        """Record as many answers as the last look of each test needs: how many the chip will need is not known yet."""
        for name in names:
            rules = self.recording.rules.benchmarks[name]
            exam = open_exam(name, rules, self.exams)
            self.folder.answers(name).parent.mkdir(parents=True, exist_ok=True)

            def progress(done: int, total: int, title: str = rules.title) -> None:
                self.watch(f"answers of the source: {title}", done, total, "answers")

            with answering(exam, self.recording.endpoint, port, read_efforts(self.recording.source)) as answerer:
                subject, repeats = subject_of_source(self.identity), plan_of(rules).looks[-1]
                sandbox = self.recording.sandbox
                side = run_side(exam, answerer, subject, self.folder.work(name), repeats, progress, sandbox=sandbox)
            side.save(self.folder.answers(name))

    def behaviour(self, port: Port | str) -> None:
        """Record answers to the behaviour prompts."""
        subject, rules = subject_of_source(self.identity), self.recording.rules.behaviour
        asked, journal = self.recording.endpoint or port, self.folder.work("behaviour")
        assert not isinstance(asked, str), "the engine answers where there is no endpoint"
        efforts = read_efforts(self.recording.source)
        ask_behaviour(asked, efforts, subject, rules, journal, self.watch).save(self.folder.behaviour)

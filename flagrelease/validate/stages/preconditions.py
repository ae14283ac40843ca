"""What a validation needs, read and compared before its first stage, and handed on to the stages.

A file of the last stage must not be found broken after the hours of the stages before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flagrelease.device import Device
from flagrelease.engine.efforts import read_efforts
from flagrelease.errors import UsageError, VerificationError
from flagrelease.extras import require_extra
from flagrelease.model.families import read_config
from flagrelease.ranks.job import is_leader
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.records.rules import LogitsRules, LongContextRules, ValidationRules
from flagrelease.records.source_identity import SourceIdentity, identity_of_record
from flagrelease.validate.baseline import NO_BASELINE, BaselineFolder, refuse_other_model
from flagrelease.validate.behaviour.answers import Behaviour
from flagrelease.validate.exams.comparison import refuse_too_few
from flagrelease.validate.exams.exam import Exam, read_exam
from flagrelease.validate.exams.marking.marking import can_be_marked, require_markers
from flagrelease.validate.exams.side import Side, refuse_other_exam, refuse_other_rules
from flagrelease.validate.logits.continuations.stored import Continuations
from flagrelease.validate.long_context.items import LengthRules, refuse_too_long
from flagrelease.validate.stages.asking import open_exam
from flagrelease.validate.stages.port import find_device
from flagrelease.validate.stages.request import Data, Exams, ValidationRequest
from flagrelease.validate.stages.stage import FILE_STAGES


@dataclass(frozen=True, slots=True)
class NativeAnswers:
    """What the native model gave, as far as the baseline has it: answers in long contexts by length, to benchmarks by
    name, and to the behaviour prompts, and texts of its own."""

    long_context: Mapping[int, Side] = field(default_factory=dict)
    benchmarks: Mapping[str, Side] = field(default_factory=dict)
    behaviour: Behaviour | None = None
    continuations: Continuations | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validation that can begin.

    Attributes:
        device: what runs the model, or why nothing does, in words.
        native: empty where nobody answers on this side, and on ranks that do not lead.
    """

    request: ValidationRequest
    baseline: BaselineFolder | None
    device: Device | str
    exams: Exams
    native: NativeAnswers

    @property
    def identity(self) -> str:
        """The digest of the source that the release was made of."""
        source = self.request.release.manifest.source
        if source.contents_blake3 is None:  # schema 1 recorded headers only: no answers match those
            return "a source whose contents the manifest does not record"
        return source.identity

    def only_files(self) -> Prepared:
        """The same validation up to the stages that read files."""
        return replace(self, request=replace(self.request, until=FILE_STAGES[-1]))


def prepare(request: ValidationRequest) -> Prepared:
    """Read everything that the stages compare with, and refuse what one of them would refuse. No model is loaded.

    Raises:
        VerificationError: the baseline's logits or answers cannot be compared with the release, or are damaged.
        UsageError: a file of questions is missing or malformed, no baseline in that folder, a device of another kind
            than the rules count, a sandbox that is none, or `out` is inside the release.
        ResourceError: a package is missing.
    """
    if request.out.resolve().is_relative_to(request.release.folder.resolve()):
        raise UsageError(f"{request.out}: is inside the release, which holds only the files of its manifest")
    baseline = None if request.baseline is None else BaselineFolder.open(request.baseline)
    device = _find_device(request)
    exams = read_exams(request.data, request.rules)
    if not isinstance(device, str):
        require_packages(request.rules)
    if request.endpoint is not None and request.rules.benchmarks:
        require_extra("eval", "asking the benchmarks")
    ready = Prepared(request, baseline, device, exams, NativeAnswers())
    if baseline is None or not is_leader() or (isinstance(device, str) and request.endpoint is None):
        return ready
    require_markers((each.kind for each in request.rules.benchmarks.values()), request.sandbox)
    if (request.endpoint is not None or not isinstance(device, str)) and baseline.logits_record.is_file():
        release = request.release
        model = identity_of_record(release.manifest.source, release.folder / MANIFEST_NAME)
        require_logits(baseline, request.rules.logits, model, release.folder)
    return replace(ready, native=read_native(baseline, request.rules, ready.identity, exams, request.release.folder))


def _find_device(request: ValidationRequest) -> Device | str:
    """The device that the model stages run on, or why there is none. Looked for only if needed: it loads torch."""
    if request.endpoint is not None:
        return f"the server at {request.endpoint.shown} is asked in place of a device"
    if request.baseline is None:
        return NO_BASELINE
    if request.until in FILE_STAGES:
        return f"not asked for (--until {request.until})"
    return find_device(request.chip, request.device, anywhere=request.rules.device == "any")


def read_exams(data: Data, rules: ValidationRules) -> dict[str, Exam]:
    """Read every file of questions that a user gave.

    Raises:
        UsageError: one is missing or malformed; names the file, the line and what it lacks.
    """
    return {name: read_exam(rules.benchmarks[name], paths) for name, paths in data.items()}


def open_exams(names: Iterable[str], exams: Exams, rules: ValidationRules) -> dict[str, Exam]:
    """The questions of benchmarks that are going to be asked: those in `exams`, and the hub's for the others.

    Raises:
        UsageError: a file of the hub is malformed, or lacks a field.
        NetworkError: the hub has no such dataset, revision or file, or does not give it.
    """
    return {name: open_exam(name, rules.benchmarks[name], exams) for name in names}


def with_all_questions(ready: Prepared) -> Prepared:
    """The same validation with the questions of all benchmarks that can be marked, which the native model was asked.

    Raises:
        VerificationError: it was asked others.
        UsageError, NetworkError: as `open_exams`.
    """
    rules, sandbox = ready.request.rules, ready.request.sandbox
    names = [name for name, each in rules.benchmarks.items() if can_be_marked(each.kind, sandbox)]
    exams = open_exams(names, ready.exams, rules)
    for name in ready.native.benchmarks.keys() & names:
        refuse_other_exam(ready.native.benchmarks[name], exams[name], read_efforts(ready.request.release.folder))
    return replace(ready, exams=exams)


def read_native(
    baseline: BaselineFolder, rules: ValidationRules, identity: str, exams: Exams, model: Path
) -> NativeAnswers:
    """Read the answers that a baseline holds, and refuse those that a release cannot be compared with.

    Args:
        identity: the digest of the source that the release was made of.
        exams: questions that are known already; the native model must have been asked the same.
        model: the release or its source: a folder that tells what a mode is to the model.

    Raises:
        VerificationError: answers of another model, to other questions, under other rules, too few of them, or no
            answers at all.
    """
    sides: dict[str, Side] = {}
    for name, benchmark in rules.benchmarks.items():
        path = baseline.answers(name)
        if path.is_file():
            side = sides[name] = Side.read(path)
            refuse_other_model(path, side.subject, identity)
            refuse_other_rules(side, benchmark, "native")
            refuse_too_few(benchmark, side)
            if name in exams:
                refuse_other_exam(side, exams[name], read_efforts(model))
    contexts = _read_contexts(baseline, rules.long_context, identity, model)
    behaviour = None
    if baseline.behaviour.is_file():
        behaviour = Behaviour.read(baseline.behaviour)
        refuse_other_model(baseline.behaviour, behaviour.subject, identity)
        if behaviour.rules != rules.behaviour:
            raise VerificationError(f"{baseline.behaviour}: was recorded under other rules of behaviour")
    return NativeAnswers(contexts, sides, behaviour, read_continuations(baseline, rules.logits, identity))


def _read_contexts(
    baseline: BaselineFolder, rules: LongContextRules | None, identity: str, model: Path
) -> dict[int, Side]:
    """The recorded answers in long contexts, by length."""
    found: dict[int, Side] = {}
    if rules is not None:
        config, _ = read_config(model / "config.json")
        refuse_too_long(rules, config.max_position_embeddings)
        for length in rules.lengths:
            path = baseline.context_answers(length)
            if path.is_file():
                side = found[length] = Side.read(path)
                refuse_other_model(path, side.subject, identity)
                refuse_other_rules(side, LengthRules(rules, length), "native")
    return found


def read_continuations(baseline: BaselineFolder, rules: LogitsRules, identity: str) -> Continuations | None:
    """The native model's texts, if the baseline has them.

    Raises:
        VerificationError: of another model, under other rules, or damaged.
    """
    path = baseline.continuations
    if not path.is_file():
        return None
    found = Continuations.read(path)
    refuse_other_model(path, found.subject, identity)
    if found.rules != rules.continuations.writing:
        raise VerificationError(f"{path}: was recorded under other rules of logits.continuations.writing")
    return found


def require_logits(baseline: BaselineFolder, rules: LogitsRules, model: SourceIdentity, folder: Path) -> None:
    """Refuse the logits of a baseline that the logits stage would refuse, and read all of their files once.

    Args:
        model: the source that the release was made of.
        folder: the release, or its source: both have the same tokenizer.

    Raises:
        VerificationError: logits of another model, documents or tokenizer, under other rules, or a damaged file.
    """
    from flagrelease.validate.logits.baseline import open_with_documents

    opened, _ = open_with_documents(baseline.logits, folder, model, rules.replay)
    opened.check_files()


def require_packages(rules: ValidationRules) -> None:
    """The packages of the stages that run a model.

    Raises:
        ResourceError: one is not installed; the message has the command that installs it.
    """
    require_extra("engine", "running the model")
    if rules.benchmarks:
        require_extra("eval", "asking the benchmarks")

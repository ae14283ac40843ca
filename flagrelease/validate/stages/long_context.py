"""The long-context stage, and the native side that it needs: the questions of every length, asked of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flagrelease.engine.efforts import read_efforts
from flagrelease.errors import ResourceError
from flagrelease.extras import remedy
from flagrelease.records.rules import LongContextRules, StageName
from flagrelease.validate.baseline import NO_BASELINE, file_sha256
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.exams.side import Side, refuse_other_exam
from flagrelease.validate.exams.sitting import sitting
from flagrelease.validate.long_context.items import make_exam
from flagrelease.validate.long_context.verdict import long_context_stage
from flagrelease.validate.stages.asking import answering
from flagrelease.validate.stages.model_stages import StageInputs
from flagrelease.validate.stages.port import Port
from flagrelease.validate.stages.stage import Outcome, Watch
from flagrelease.validate.stages.state import stage_work


@dataclass(frozen=True, slots=True)
class LongContextStage:
    """Asks the port or an endpoint what stands in long registers."""

    given: StageInputs
    name: StageName = "long-context"

    @property
    def rules(self) -> LongContextRules:
        """Of a stage that has them."""
        rules = self.given.request.rules.long_context
        assert rules is not None
        return rules

    def missing(self) -> str | None:
        """The baseline, rules, native answers, or who answers on this side."""
        if self.given.baseline is None:
            return NO_BASELINE
        if self.given.request.rules.long_context is None:
            return "the rules have no long_context"
        recorded = self.given.recorded
        if lengths := [length for length in self.rules.lengths if not recorded.context_answers(length).is_file()]:
            return f"the baseline has no answers in contexts of {', '.join(map(str, lengths))} tokens"
        return self.given.asked if isinstance(self.given.asked, str) else None

    def inputs(self) -> dict[str, str]:
        """The native answers, and who answers."""
        recorded = self.given.recorded
        digests = " ".join(file_sha256(recorded.context_answers(length)) for length in self.rules.lengths)
        return {"answerer": self.given.answerer, "baseline": digests}

    def run(self, watch: Watch) -> Outcome:
        """Ask the questions of all lengths, the shortest first."""
        given, request = self.given, self.given.request
        work = stage_work(request.out, self.name)
        native = given.ready.native.long_context
        asks = ContextAsks(self.rules, request.release.folder, request.endpoint, given.port, given.subject)
        chip = asks.ask(lambda length: work / f"{length}.jsonl", native, watch)
        stage = long_context_stage(self.rules, native, chip)
        return Outcome(stage=stage, inputs=self.inputs(), seeds={"long context": self.rules.seed})


@dataclass(frozen=True, slots=True)
class ContextAsks:
    """Who is asked. `model`: its folder or its source's, whose tokenizer counts; `subject`: how answers name it."""

    rules: LongContextRules
    model: Path
    endpoint: Endpoint | None
    port: Port | str
    subject: str

    def ask(self, journal: Callable[[int], Path], native: Mapping[int, Side], watch: Watch) -> dict[int, Side]:
        """Answers to the questions of every length, by length; those in a journal are not asked for again.

        Args:
            journal: of a length.
            native: what the answers will be compared with, if anything.
            watch: is told after every answer.

        Raises:
            VerificationError: the native side was asked other questions, or the answers cannot be right.
            UsageError: a length that no register has, or that does not fit the model.
            NetworkError, ResourceError: as of the answerer and the journal.
        """
        return {
            length: self.ask_length(length, journal(length), native.get(length), watch) for length in self.rules.lengths
        }

    def ask_length(self, length: int, journal: Path, native: Side | None, watch: Watch) -> Side:
        """The same of one length.

        Raises:
            As `ask`.
        """
        try:
            from flagrelease.engine.text import Tokenizer
        except ModuleNotFoundError as error:
            raise ResourceError(f"exact lengths need {error.name}: {remedy('engine')}") from error
        efforts = read_efforts(self.model)
        exam = make_exam(self.rules, length, Tokenizer(self.model), efforts)
        if native is not None:
            refuse_other_exam(native, exam, efforts)
        journal.parent.mkdir(parents=True, exist_ok=True)

        def progress(done: int, total: int) -> None:
            watch(f"long context: {length} tokens", done, total, "answers")

        with (
            answering(exam, self.endpoint, self.port, efforts, longest=length) as answerer,
            sitting(exam, answerer, self.subject, journal, progress, native) as sat,
        ):
            return sat.ask_all(1)

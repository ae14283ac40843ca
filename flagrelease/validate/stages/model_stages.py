"""The stages benchmarks and behaviour, which need the native side, and a device or an endpoint."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.engine.efforts import read_efforts
from flagrelease.records.report import Benchmark
from flagrelease.records.rules import BenchmarkRules, StageName
from flagrelease.validate.baseline import NO_BASELINE, BaselineFolder, file_sha256
from flagrelease.validate.behaviour.stage import behaviour_stage
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.exams.marking.marking import CODE_NEEDS_SANDBOX, can_be_marked
from flagrelease.validate.exams.run import examine
from flagrelease.validate.exams.stage import benchmarks_stage
from flagrelease.validate.stages.asking import answering, ask_behaviour, open_exam, stack_of
from flagrelease.validate.stages.port import Port
from flagrelease.validate.stages.preconditions import Prepared
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.stage import Outcome, Watch
from flagrelease.validate.stages.state import stage_work


@dataclass(frozen=True, slots=True)
class StageInputs:
    """What the stages that need a model have in common.

    Attributes:
        ready: what is asked for, and what was read before the first stage.
        port: the running release, or why it cannot run.
    """

    ready: Prepared
    port: Port | str

    @property
    def request(self) -> ValidationRequest:
        """What is asked for."""
        return self.ready.request

    @property
    def baseline(self) -> BaselineFolder | None:
        """The baseline, if one was given."""
        return self.ready.baseline

    @property
    def subject(self) -> str:
        """How recorded answers name this release."""
        return f"manifest {self.request.release.manifest_sha256}"

    @property
    def answerer(self) -> str:
        """Who answers: the endpoint if there is one, without anything secret, else the bundled engine."""
        endpoint = self.request.endpoint
        return f"engine, {self.request.operators}" if endpoint is None else stack_of(endpoint)

    @property
    def asked(self) -> Port | Endpoint | str:
        """What is asked: the endpoint if there is one, else the port; or why neither is there."""
        return self.request.endpoint or self.port

    @property
    def running(self) -> Port:
        """The port, for a stage that has one."""
        assert isinstance(self.port, Port)
        return self.port

    @property
    def recorded(self) -> BaselineFolder:
        """The baseline, for a stage that has one."""
        assert self.baseline is not None
        return self.baseline


@dataclass(frozen=True, slots=True)
class BenchmarksStage:
    """Asks the port or an endpoint the questions of the benchmarks."""

    given: StageInputs
    name: StageName = "benchmarks"

    @property
    def asked(self) -> dict[str, BenchmarkRules]:
        """The benchmarks whose answers can be marked here."""
        request = self.given.request
        return {
            name: each for name, each in request.rules.benchmarks.items() if can_be_marked(each.kind, request.sandbox)
        }

    def missing(self) -> str | None:
        """The baseline, benchmarks in the rules, native answers, or who answers on this side."""
        if self.given.baseline is None:
            return NO_BASELINE
        if not self.given.request.rules.benchmarks:
            return "the rules name no benchmark"
        if not self.asked:
            return f"an exam of code: {CODE_NEEDS_SANDBOX}"
        names = [name for name in self.asked if not self.given.recorded.answers(name).is_file()]
        if names:
            return f"the baseline has no answers to {', '.join(names)}"
        return self.given.asked if isinstance(self.given.asked, str) else None

    def inputs(self) -> dict[str, str]:
        """The native answers, the files of questions, and who answers."""
        request = self.given.request
        found = {"answerer": self.given.answerer}
        for name in self.asked:
            found[f"baseline of {name}"] = file_sha256(self.given.recorded.answers(name))
            found[f"data of {name}"] = " ".join(map(file_sha256, request.data.get(name, ()))) or "hub"
        return found

    def run(self, watch: Watch) -> Outcome:
        """Ask the benchmarks one after the other, each until a look of its test decides."""
        request = self.given.request
        benchmarks = tuple(self._examine(name, each, watch) for name, each in self.asked.items())
        left_out = [each.title for name, each in request.rules.benchmarks.items() if name not in self.asked]
        stage = benchmarks_stage(benchmarks, by_endpoint=request.endpoint is not None, left_out=left_out)
        seeds = {f"benchmark: {name}": each.seed for name, each in self.asked.items()}
        return Outcome(stage=stage, inputs=self.inputs(), benchmarks=benchmarks, seeds=seeds)

    def _examine(self, name: str, rules: BenchmarkRules, watch: Watch) -> Benchmark:
        exam = open_exam(name, rules, self.given.ready.exams)
        work = stage_work(self.given.request.out, self.name)
        work.mkdir(parents=True, exist_ok=True)

        def progress(done: int, total: int) -> None:
            watch(f"benchmarks: {rules.title}", done, total, "answers")

        native, sandbox = self.given.ready.native.benchmarks[name], self.given.request.sandbox
        efforts = read_efforts(self.given.request.release.folder)
        with answering(exam, self.given.request.endpoint, self.given.port, efforts) as answerer:
            journal = work / f"{name}.jsonl"
            benchmark, _ = examine(exam, answerer, self.given.subject, journal, native, progress, sandbox)
        return benchmark


@dataclass(frozen=True, slots=True)
class BehaviourStage:
    """Asks the port or an endpoint the behaviour prompts."""

    given: StageInputs
    name: StageName = "behaviour"

    def missing(self) -> str | None:
        """The baseline, its behaviour, or who answers on this side."""
        if self.given.baseline is None:
            return NO_BASELINE
        if not self.given.baseline.behaviour.is_file():
            return "the baseline has no behaviour"
        return self.given.asked if isinstance(self.given.asked, str) else None

    def inputs(self) -> dict[str, str]:
        """The native answers, and who answers: the provider of the operators, or the endpoint."""
        found = {"baseline": file_sha256(self.given.recorded.behaviour)}
        if self.given.request.endpoint is None:
            return found | {"operators": self.given.request.operators}
        return found | {"answerer": self.given.answerer}

    def run(self, watch: Watch) -> Outcome:
        """Ask all prompts."""
        native, rules = self.given.ready.native.behaviour, self.given.request.rules.behaviour
        assert native is not None, "the stage is missing nothing"
        work = stage_work(self.given.request.out, self.name)
        work.mkdir(parents=True, exist_ok=True)
        asked, release = self.given.asked, self.given.request.release.folder
        assert not isinstance(asked, str), "the stage is missing nothing"
        answers = ask_behaviour(asked, read_efforts(release), self.given.subject, rules, work / "answers.jsonl", watch)
        stage = behaviour_stage(release, answers, native)
        return Outcome(stage=stage, inputs=self.inputs(), seeds={"behaviour": rules.seed})

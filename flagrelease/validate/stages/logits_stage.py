"""The logits stage: the gate of continuations first, then the documents, on the endpoint or on the bundled engine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flagrelease.extras import remedy
from flagrelease.model.families import read_config
from flagrelease.records.report import Stage
from flagrelease.records.rules import StageName
from flagrelease.validate.baseline import NO_BASELINE, file_sha256
from flagrelease.validate.stages.model_stages import StageInputs
from flagrelease.validate.stages.stage import ABSENT, Outcome, Watch
from flagrelease.validate.stages.state import stage_work

if TYPE_CHECKING:
    from flagrelease.engine.loaded import AnyModel
    from flagrelease.validate.logits.continuations.gate import Gate
    from flagrelease.validate.logits.continuations.texts import TextModel
    from flagrelease.validate.logits.served.server import ServedRelease

_NO_DOCUMENTS = "The baseline has no logits of documents to compare."


@dataclass(frozen=True, slots=True)
class LogitsStage:
    """Compares the distributions of tokens on given texts."""

    given: StageInputs
    name: StageName = "logits"

    def missing(self) -> str | None:
        """The baseline, what it needs to hold, or who computes."""
        given = self.given
        if given.baseline is None:
            return NO_BASELINE
        if not given.baseline.logits_record.is_file() and given.ready.native.continuations is None:
            return "the baseline has no logits"
        if given.request.endpoint is None:
            return given.port if isinstance(given.port, str) else None
        if importlib.util.find_spec("torch") is None:
            return f"torch is not installed, which reads the baseline's logits: {remedy('engine')}"
        return None

    def inputs(self) -> dict[str, str]:
        """The baseline, whether layers are compared, and who computes."""
        given, request = self.given, self.given.request
        files = {"baseline": given.recorded.logits_record, "continuations": given.recorded.continuations}
        found = {name: file_sha256(path) if path.is_file() else ABSENT for name, path in files.items()}
        found["look at layers"] = "yes" if request.layers else "no"
        if request.endpoint is not None:
            return found | {"answerer": f"{request.endpoint.model} at {request.endpoint.shown}"}
        return found | {"operators": request.operators}

    def run(self, watch: Watch) -> Outcome:
        """Run the gate, and unless it fails, all documents: on all ranks, or over the endpoint."""
        seeds = {"logits: bootstrap": self.given.request.rules.logits.seed}
        return Outcome(stage=self._stage(watch), inputs=self.inputs(), seeds=seeds)

    def compute(self, model: AnyModel, watch: Watch) -> Stage:
        """Run the documents on the engine; every rank calls this."""
        from flagrelease.validate.logits.stage import run_logits

        request = self.given.request
        return run_logits(
            model,
            request.release.folder,
            self.given.recorded.logits,
            request.rules.logits,
            stage_work(request.out, "logits"),
            layers=request.layers,
            progress=lambda done, total: watch("logits", done, total, "tokens"),
        )

    def _stage(self, watch: Watch) -> Stage:
        server = self._server()
        gate = self._gate(server, watch)
        if isinstance(gate, str):
            return Stage(name=self.name, verdict="not-run", detail=f"Not run: {gate}.")
        if gate is not None and gate.verdict == "fail":
            return gate.alone("Nothing longer was run.")
        if gate is not None and not self.given.recorded.logits_record.is_file():
            return gate.alone(_NO_DOCUMENTS)
        if server is None:
            stage = self.given.running.logits(lambda model: self.compute(model, watch))
        else:
            stage = self._served(server, watch)
        return stage if gate is None else gate.beside(stage)

    def _server(self) -> ServedRelease | None:
        from flagrelease.validate.logits.served.server import ServedRelease

        request = self.given.request
        return None if request.endpoint is None else ServedRelease(request.release.folder, request.endpoint)

    def _served(self, server: ServedRelease, watch: Watch) -> Stage:
        from flagrelease.validate.logits.served.stage import run_served

        request = self.given.request
        return run_served(
            server,
            self.given.recorded.logits,
            request.rules.logits,
            self._work("served"),
            lambda done, total: watch("logits", done, total, "tokens"),
        )

    def _gate(self, server: ServedRelease | None, watch: Watch) -> Gate | str | None:
        """The gate's outcome; why it cannot be run; None if the baseline has no texts."""
        texts = self.given.ready.native.continuations
        if texts is None:
            return None
        if server is not None:
            from flagrelease.validate.logits.continuations.served import EndpointTexts
            from flagrelease.validate.logits.served.kept import ServedFolder

            work = self._work("gate")
            work.mkdir(parents=True, exist_ok=True)
            way = server.way(ServedFolder(work), server.prompt(0, texts.texts[0].tokens), 1)
            return way if isinstance(way, str) else self._judged(EndpointTexts(server, way), server.where, watch)
        from flagrelease.validate.logits.continuations.texts import EngineTexts

        port, longest = self.given.running, max(len(text.tokens) for text in texts.texts)
        with port.answering(longest, 1) as scheduler:
            return self._judged(EngineTexts(scheduler), port.stack, watch)

    def _judged(self, model: TextModel, stack: str, watch: Watch) -> Gate:
        from flagrelease.validate.logits.continuations.gate import run_gate

        texts = self.given.ready.native.continuations
        assert texts is not None
        config, _ = read_config(self.given.request.release.folder / "config.json")
        work = self._work("gate")
        work.mkdir(parents=True, exist_ok=True)
        binding = {
            "subject": self.given.subject,
            "stack": stack,
            "baseline": file_sha256(self.given.recorded.continuations),
        }
        return run_gate(
            model,
            texts,
            self.given.request.rules.logits,
            config.vocab_size,
            work / "scores.jsonl",
            binding,
            lambda done, total: watch("logits: texts of the native model", done, total, "texts"),
        )

    def _work(self, part: str) -> Path:
        """A folder of its own for a part: the engine's is bound to what it ran on."""
        return stage_work(self.given.request.out, self.name).with_name(f"logits-{part}")

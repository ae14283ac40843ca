"""Invariance as a stage of a validation."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.engine.efforts import read_efforts
from flagrelease.records.rules import StageName
from flagrelease.validate.invariance.asking import InvarianceAsker
from flagrelease.validate.invariance.prompts import invariance_prompts
from flagrelease.validate.invariance.stage import invariance_stage
from flagrelease.validate.stages.model_stages import StageInputs
from flagrelease.validate.stages.stage import ABSENT, NO_ENDPOINT, Outcome, Watch
from flagrelease.validate.stages.state import stage_work


@dataclass(frozen=True, slots=True)
class InvarianceStage:
    """Sends the same requests to the endpoint, and to its variants, in several circumstances."""

    given: StageInputs
    name: StageName = "invariance"

    def missing(self) -> str | None:
        """An endpoint, since the bundled engine has tests of its own; or rules that ask for it."""
        if self.given.request.rules.invariance is None:
            return "the rules ask for no invariance"
        return NO_ENDPOINT if self.given.request.endpoint is None else None

    def inputs(self) -> dict[str, str]:
        """Who answers. Variants may come later: then the stage is run again, with the answers that it has."""
        variants = self.given.request.variants
        named = ", ".join(f"{name}={endpoint.shown}" for name, endpoint in sorted(variants.items()))
        return {"answerer": self.given.answerer, "variants": named or ABSENT}

    def run(self, watch: Watch) -> Outcome:
        """Send what has no answer yet, and compare."""
        from flagrelease.engine.text import Tokenizer

        request = self.given.request
        folder, rules = request.release.folder, request.rules.invariance
        assert request.endpoint is not None, "the stage is missing nothing"
        assert rules is not None, "the stage is missing nothing"
        tokenizer = Tokenizer(folder)
        prompts = invariance_prompts(rules, lambda text: len(tokenizer.encode(text)))
        effort = read_efforts(folder).of("chat")

        def progress(done: int, total: int) -> None:
            watch(self.name, done, total, "answers")

        asker = InvarianceAsker(request.endpoint, request.variants, effort, prompts, rules)
        journal = stage_work(request.out, self.name) / "answers.jsonl"
        binding = {"release": request.release.manifest_sha256, "server": self.given.answerer}
        heard = asker.ask(journal, binding, progress)
        return Outcome(stage=invariance_stage(heard, prompts, rules), inputs=self.inputs())

"""The pre-flight as a stage of a validation."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.engine.efforts import read_efforts
from flagrelease.model.families import read_config
from flagrelease.model.v4.chat import BOS
from flagrelease.records.rules import PreflightRules, StageName, ValidationRules
from flagrelease.validate.endpoint.reading import MalformedReplyError
from flagrelease.validate.preflight.asking import PreflightAsker
from flagrelease.validate.preflight.stage import Meant, judge_replies, preflight_stage
from flagrelease.validate.preflight.usage import judge_unreadable
from flagrelease.validate.stages.model_stages import StageInputs
from flagrelease.validate.stages.stage import NO_ENDPOINT, Outcome, Watch


@dataclass(frozen=True, slots=True)
class PreflightStage:
    """Asks the endpoint what takes minutes to ask, before the stages that take hours."""

    given: StageInputs
    name: StageName = "preflight"

    def missing(self) -> str | None:
        """An endpoint, since the bundled engine has tests of its own; or rules that ask for it."""
        if self.given.request.rules.preflight is None:
            return "the rules ask for no pre-flight"
        return NO_ENDPOINT if self.given.request.endpoint is None else None

    def inputs(self) -> dict[str, str]:
        """Who answers."""
        return {"answerer": self.given.answerer}

    def run(self, watch: Watch) -> Outcome:
        """Ask everything and judge it. Begun again after a kill."""
        from flagrelease.engine.text import Tokenizer

        request, endpoint = self.given.request, self.given.request.endpoint
        folder, rules = request.release.folder, request.rules.preflight
        assert endpoint is not None, "the stage is missing nothing"
        assert rules is not None, "the stage is missing nothing"
        tokenizer = Tokenizer(folder)

        def progress(done: int, total: int) -> None:
            watch(self.name, done, total, "prompts")

        try:
            replies = PreflightAsker(endpoint, read_efforts(folder), tokenizer, rules, progress).ask()
        except MalformedReplyError as error:
            only = preflight_stage([judge_unreadable(error.said)], self.given.answerer, [])
            return Outcome(stage=only, inputs=self.inputs())
        config, _ = read_config(folder / "config.json")
        (bos,) = tokenizer.encode(BOS)
        meant = Meant(endpoint.model, bos, *needed_context(request.rules, rules), config.max_position_embeddings)
        checks = judge_replies(replies, meant, rules)
        return Outcome(stage=preflight_stage(checks, self.given.answerer, replies.every), inputs=self.inputs())


def needed_context(rules: ValidationRules, own: PreflightRules) -> tuple[int, str]:
    """The most tokens that a stage asks for, prompts of benchmarks not counted, and what it is."""
    if own.context is not None:
        return own.context, "the rules"
    wanted = {"reasoning": own.thinking_tokens}
    if rules.invariance is not None:
        wanted["registers of invariance"] = max(rules.invariance.lengths) + rules.invariance.max_tokens
    if rules.long_context is not None:
        wanted["long contexts"] = max(rules.long_context.lengths) + rules.long_context.max_tokens
    wanted |= {each.title: each.max_tokens for each in rules.benchmarks.values()}
    most = max(wanted, key=lambda name: wanted[name])
    return wanted[most], most

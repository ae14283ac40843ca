"""What is asked of a model about texts: to continue some, to score some. `EngineTexts` asks the bundled engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flagrelease.engine.batch.scheduler import Scheduler
    from flagrelease.engine.sampling import Sampling

Texts = Mapping[str, Sequence[int]]  # token ids by name


@dataclass(frozen=True, slots=True)
class Rated:
    """The log-probabilities of a text's tokens from number `first` on, or in words why there are none."""

    name: str
    logp: tuple[float, ...] | str
    first: int = 1
    seconds: float = 0.0

    def of_last(self, count: int) -> tuple[float, ...] | str:
        """Those of the last `count` tokens, of which all are known, or why not."""
        if isinstance(self.logp, str) or len(self.logp) >= count:
            return self.logp if isinstance(self.logp, str) else self.logp[-count:]
        return f"the server tells nothing of the first {self.first} tokens"


class TextModel(Protocol):
    """A model that texts are given to, at temperature 1."""

    def write(self, prompts: Texts, seeds: Mapping[str, int], tokens: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Continue prompts by at most `tokens` sampled tokens, an end token included; each as soon as it is there."""
        ...

    def rate(self, texts: Texts) -> Iterator[Rated]:
        """Score the tokens of texts, each text read at once; each as soon as it is there."""
        ...


@dataclass(frozen=True, slots=True)
class EngineTexts:
    """On the leader of a session; the other ranks follow. The scheduler's context must hold the longest text."""

    scheduler: Scheduler

    def write(self, prompts: Texts, seeds: Mapping[str, int], tokens: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """As `TextModel` says."""
        from flagrelease.engine.sampling import Sampling

        asks = {name: (prompt, Sampling(seed=seeds[name], max_tokens=tokens)) for name, prompt in prompts.items()}
        for name, (written, _) in self._run(asks):
            yield name, written

    def rate(self, texts: Texts) -> Iterator[Rated]:
        """As `TextModel` says."""
        from flagrelease.engine.sampling import Sampling

        scored = Sampling(max_tokens=0, prompt_logprobs=0)
        for name, (_, logp) in self._run({name: (text, scored) for name, text in texts.items()}):
            yield Rated(name, logp)

    def _run(
        self, asks: Mapping[str, tuple[Sequence[int], Sampling]]
    ) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[float, ...]]]]:
        """Tokens that were written, and log-probabilities of the prompt's."""
        names = {self.scheduler.submit(*ask): name for name, ask in asks.items()}
        written: dict[int, list[int]] = {key: [] for key in names}
        scores: dict[int, list[float]] = {key: [] for key in names}
        while self.scheduler.busy:
            for event in self.scheduler.step():
                written[event.key] += event.tokens
                scores[event.key] += [score.logprob for score in event.prompt_scores if score.logprob is not None]
                if event.finish:
                    yield names[event.key], (tuple(written.pop(event.key)), tuple(scores.pop(event.key)))

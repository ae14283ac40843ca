"""What a validation must show, fixed before it runs: in the recipe, under `validation`, and copied into the report.

The limits start from published practice and measurements; docs/validation.md gives the source of each.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal["integrity", "weights", "logits", "benchmarks", "behaviour"]
STAGES: tuple[StageName, ...] = get_args(StageName)  # in the order they run: cheapest first


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReplayRules(_Strict):
    """What is run teacher-forced, and how much of it is kept. A baseline holds these, and is refused under others.

    Attributes:
        documents: of the set, at most (the first ones).
        tokens: of a document, at most; `long_tokens` of one whose kind is `long`.
        decode_tokens: at a document's end that are also fed one by one, through the cache.
        top: most likely tokens kept at each position; a smaller vocabulary is kept whole.
        chunk: tokens the engine takes in one step; the noise floor is another run with `floor_chunk`, and with
            `floor_rows` equal sequences side by side where tokens are fed one by one.
        layer_positions: of a document, at which the states of all layers are kept.
    """

    documents: int = Field(64, ge=2)
    tokens: int = Field(512, ge=3)
    long_tokens: int = Field(16384, ge=3)
    decode_tokens: int = Field(128, ge=1)
    top: int = Field(1000, ge=2)
    chunk: int = Field(512, ge=1)
    floor_chunk: int = Field(192, ge=1)
    floor_rows: int = Field(3, ge=1)
    layer_positions: int = Field(2, ge=1)


class LogitsLimits(_Strict):
    """Limits of one comparison, KL(reference || tested). What is None does not decide.

    Attributes:
        mean_kl: the limit is this, or `floors` times the noise floor if that is more.
        tail_kl: at most `tail_share` of the tokens are above it: 0.1 and 0.001 say that the 99.9th percentile is at
            most 0.1.
        top1: share of tokens where both have the same most likely token; `top1_clear` where the reference's first is
            `margin` nats ahead of its second.
        perplexity: relative difference, either way.
    """

    mean_kl: float = Field(gt=0)
    floors: float | None = Field(None, gt=0)
    tail_kl: float | None = Field(None, gt=0)
    tail_share: float = Field(0.001, gt=0, lt=1)
    top1: float | None = Field(None, gt=0, lt=1)
    top1_clear: float = Field(gt=0, lt=1)
    margin: float = Field(gt=0)
    perplexity: float = Field(gt=0)

    def loosened(self, factor: float) -> LogitsLimits:
        """The same limits, every allowed difference `factor` times as large."""
        return self.model_copy(
            update={
                "mean_kl": self.mean_kl * factor,
                "tail_kl": None if self.tail_kl is None else self.tail_kl * factor,
                "top1": None if self.top1 is None else 1 - (1 - self.top1) * factor,
                "top1_clear": 1 - (1 - self.top1_clear) * factor,
                "perplexity": self.perplexity * factor,
            }
        )


class LayerLimits(_Strict):
    """Limits of `--layers`, of the medians over positions. They are a start, to be calibrated on the first floor.

    Attributes:
        last_error: relative RMS error of the streams behind the last layer.
        early_cosine, late_cosine: of the streams in the first and the second half of the layers.
        experts: mean share of a token's experts that both runs chose.
        step: a layer is where a fault sits if its error is this many times the error before it, the floor's, and
            `rounding` (one rounding to BF16).
    """

    last_error: float = Field(0.02, gt=0)
    early_cosine: float = Field(0.9999, gt=0, lt=1)
    late_cosine: float = Field(0.999, gt=0, lt=1)
    experts: float = Field(0.99, gt=0, lt=1)
    step: float = Field(3.0, gt=1)
    rounding: float = Field(2**-8, gt=0)


class LogitsRules(_Strict):
    """Limits of the logits stage. KL in nats, shares and relative differences as fractions.

    Attributes:
        oracle: against the source decoded to BF16; decides for a port that rounds no activations.
        native: the same port against the source's native run.
        ratio: where KL(native || port) / KL(native || oracle) must be.
        rounded: a port that rounds activations itself is compared with the native run by `oracle`, this much looser.
        outlier_logp, outlier_margin: no token may differ by so many nats where the reference is so sure.
        min_documents, min_tokens, min_decode_tokens: with fewer scored a pass is not possible.
        confidence, resamples, seed: of the bootstrap by documents.
    """

    replay: ReplayRules = ReplayRules()
    oracle: LogitsLimits = LogitsLimits(
        mean_kl=2e-3, floors=3, tail_kl=0.1, top1=0.97, top1_clear=0.999, margin=0.5, perplexity=0.003
    )
    native: LogitsLimits = LogitsLimits(mean_kl=0.015, top1_clear=0.995, margin=2, perplexity=0.01)
    ratio: tuple[float, float] = (0.8, 1.25)
    rounded: float = Field(2.0, ge=1)
    outlier_logp: float = Field(5.0, gt=0)
    outlier_margin: float = Field(2.0, gt=0)
    min_documents: int = Field(64, ge=2)
    min_tokens: int = Field(16384, ge=1)
    min_decode_tokens: int = Field(4096, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)
    layers: LayerLimits = LayerLimits()


class BenchmarkRules(_Strict):
    """One benchmark: what is asked, how often, and the test that decides.

    Attributes:
        margin: largest drop that still counts as aligned, in points of 100.
        repeats: answers to each question, at the first look; `extension` times that many at the last.
    """

    margin: float = Field(gt=0, lt=100)
    repeats: int = Field(ge=1)


class BehaviourRules(_Strict):
    """Limits of the behaviour stage."""


class ValidationRules(_Strict):
    """All of them.

    Attributes:
        stages: a pass needs these.
    """

    stages: tuple[StageName, ...] = STAGES
    logits: LogitsRules = LogitsRules()
    benchmarks: dict[str, BenchmarkRules] = {}
    behaviour: BehaviourRules = BehaviourRules()

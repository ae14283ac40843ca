"""Rules of the logits stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from flagrelease.records.rules.continuations import ContinuationRules
from flagrelease.records.rules.layers import LayerLimits
from flagrelease.records.rules.replay import ReplayRules
from flagrelease.records.rules.served import ServedRules
from flagrelease.records.rules.strict import Strict


class LogitsLimits(Strict):
    """Limits of one comparison, KL(reference || tested). What is None does not decide.

    Attributes:
        mean_kl, floors: the limit is `mean_kl`, or `floors` times the noise floor if that is more.
        tail_kl, tail_share: at most `tail_share` of the tokens are above `tail_kl`: 0.1 and 0.001 say that the 99.9th
            percentile is at most 0.1.
        top1: share of tokens where both have the same most likely token.
        top1_clear, margin: the same where the reference's first is `margin` nats ahead of its second.
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

    def widened(self, factor: float) -> LogitsLimits:
        """The same limits for an error whose mean KL may be `factor` times as large.

        The perplexity of text that the reference would write grows by the KL itself, so its limit grows as that of KL
        does, and so does what counts as a large KL; the share of such tokens stays. KL grows with the square of an
        error in the logits, and other tokens come first in proportion to the error: their share may grow by the root.
        """
        by_root = self.loosened(factor**0.5)
        return self.loosened(factor).model_copy(update={"top1": by_root.top1, "top1_clear": by_root.top1_clear})


_OwnRounding = dict[Literal["int8", "fp8-channel", "mxfp8"], Annotated[float, Field(gt=0)]]
_SHARES: _OwnRounding = {"int8": 0.5, "fp8-channel": 0.75, "mxfp8": 1.25}  # measured: docs/validation-logits.md


class LogitsRules(Strict):
    """Limits of the logits stage. KL in nats, shares and relative differences as fractions.

    Attributes:
        replay: what is run, and how much of it is kept.
        oracle: against the source decoded to BF16; decides for a port that rounds no activations.
        native: the same port against the source's native run.
        ratio: where KL(native || port) / KL(native || oracle) must be.
        rounded: a port that rounds activations as the native run does (`native`, `fp8` numerics) is compared with that
            run by `oracle`, this much looser.
        own_rounding: a port that rounds them in its own way is compared with the BF16 oracle by `oracle`, widened
            until its mean KL may be this share, by numerics, of KL(native || oracle): of the cost of native rounding.
        outlier_logp, outlier_margin: no token may differ by so many nats where the reference is so sure.
        min_documents, min_tokens, min_decode_tokens: with fewer scored a pass is not possible.
        confidence, resamples, seed: of the bootstrap by documents.
        layers: limits of `--layers`.
        served: of logits that a server tells.
        continuations: of the gate that is run first.
    """

    replay: ReplayRules = ReplayRules()
    oracle: LogitsLimits = LogitsLimits(
        mean_kl=2e-3, floors=3, tail_kl=0.1, top1=0.97, top1_clear=0.999, margin=0.5, perplexity=0.003
    )
    native: LogitsLimits = LogitsLimits(mean_kl=0.015, top1_clear=0.995, margin=2, perplexity=0.01)
    ratio: tuple[float, float] = (0.8, 1.25)
    rounded: float = Field(2.0, ge=1)
    own_rounding: Annotated[_OwnRounding, AfterValidator(lambda given: _SHARES | given)] = _SHARES
    outlier_logp: float = Field(5.0, gt=0)
    outlier_margin: float = Field(2.0, gt=0)
    min_documents: int = Field(64, ge=2)
    min_tokens: int = Field(16384, ge=1)
    min_decode_tokens: int = Field(4096, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)
    layers: LayerLimits = LayerLimits()
    served: ServedRules = ServedRules()
    continuations: ContinuationRules = ContinuationRules()

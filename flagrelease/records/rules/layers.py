"""Limits of `--layers`: where in the model a port leaves the oracle."""

from __future__ import annotations

from pydantic import Field

from flagrelease.records.rules.strict import Strict


class LayerLimits(Strict):
    """Limits of `--layers`, of the medians over positions. They are a start, to be calibrated on the first floor.

    Attributes:
        last_error: relative RMS error of the streams behind the last layer.
        early_cosine, late_cosine: of the streams in the first and the second half of the layers.
        experts: mean share of a token's experts that both runs chose.
        floors: where the noise floor's difference, so many times, is more than a limit allows, it is the limit.
        step: a layer is where a fault sits if its error is this many times the error before it, the floor's, and
            `rounding`.
        rounding, fp8_rounding: relative RMS error of one rounding to BF16; the latter where the port rounds to FP8.
    """

    last_error: float = Field(0.02, gt=0)
    early_cosine: float = Field(0.9999, gt=0, lt=1)
    late_cosine: float = Field(0.999, gt=0, lt=1)
    experts: float = Field(0.99, gt=0, lt=1)
    floors: float = Field(3.0, gt=0)
    step: float = Field(3.0, gt=1)
    rounding: float = Field(2**-8, gt=0)
    fp8_rounding: float = Field(0.027, gt=0)

    def loosened(self, factor: float) -> LayerLimits:
        """For a port that rounds to FP8, as the native run: `factor` times the errors, its square in 1 - cosine."""
        return self.model_copy(
            update={
                "last_error": self.last_error * factor,
                "early_cosine": 1 - (1 - self.early_cosine) * factor**2,
                "late_cosine": 1 - (1 - self.late_cosine) * factor**2,
                "experts": 1 - (1 - self.experts) * factor,
                "rounding": self.fp8_rounding,
            }
        )

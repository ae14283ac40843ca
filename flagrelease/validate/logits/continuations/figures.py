"""The figures of the gate, as the report has them and the page reads them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue

from flagrelease.validate.logits.served.figures import Costs, Refused


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class GateText(_Figures):
    """One text: its tokens, and the mean negative log-probability that each side gives them, in nats."""

    name: str
    tokens: int
    native: float
    port: float


class GateFigures(_Figures):
    """Of the gate.

    Attributes:
        measures: `nll` and `sampled_kl`, in the form of the stage's other measures.
        refused: texts that were not scored, and why.
    """

    tokens: int
    measures: tuple[dict[str, JsonValue], ...]
    texts: tuple[GateText, ...]
    refused: tuple[Refused, ...]
    costs: Costs

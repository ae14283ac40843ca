"""The figures of served logits, as the report has them and the page reads them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Costs(_Figures):
    """What asking took.

    Attributes:
        requests: that were answered, those in which the way was found left out.
        tokens: of prompts.
        seconds: of all requests, from sending one to its answer; with several at once, less passed by the clock.
    """

    requests: int
    tokens: int
    seconds: float


class ServedBounds(_Figures):
    """How much the server's lists say of one comparison.

    Attributes:
        shown: mean KL that the lists prove, a lower bound; `inferred` is what they suggest of the whole, in nats.
        share: of the KL between the source's two runs, the part that such lists show.
        bounded: share of tokens whose KL has an upper bound too.
        least_variation, most_variation: bounds of the mean total variation, 0 to 1.
        unlisted: mean probability that the reference gives to tokens that were not listed.
    """

    reference: Literal["native", "oracle"]
    shown: float
    inferred: float | None
    share: float | None
    bounded: float
    least_variation: float
    most_variation: float
    unlisted: float


class Refused(_Figures):
    """A document that was not compared, and why."""

    name: str
    reason: str


class Served(_Figures):
    """Of the stage.

    Attributes:
        way: how the server told (`ways.WayName`); `alternatives` is the length of its lists.
        cut: documents of which the server's context holds the beginning only.
    """

    way: str
    alternatives: int
    documents: int
    refused: tuple[Refused, ...]
    cut: tuple[str, ...]
    bounds: tuple[ServedBounds, ...]
    costs: Costs

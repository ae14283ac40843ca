"""The figures of the logits stage as the page reads them; `validate/logits/verdict.py` makes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.records.report import PartVerdict
from flagrelease.validate.logits.continuations.figures import GateFigures
from flagrelease.validate.logits.served.figures import Served

REFERENCES = {"oracle": "the BF16 oracle", "native": "the native run"}


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True)


class Measure(_Read):
    """A limit and the measured value."""

    name: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    verdict: PartVerdict


class Distribution(_Read):
    """KL of tokens: how many fall between `edges` (log10 of nats), and how many `below` the first edge."""

    edges: tuple[float, ...]
    histogram: tuple[int, ...]
    below: int
    quantiles: dict[str, float]


class Agreement(_Read):
    """How many tokens the reference decides by more than `margin` nats, and how many of those agree."""

    margin: float
    tokens: int
    agree: float | None


class Document(_Read):
    """The mean KL over one document."""

    name: str
    kind: str
    tokens: int
    mean_kl: float | None


class Comparison(_Read):
    """One replay compared with one reference."""

    reference: Literal["oracle", "native"]
    replay: Literal["prefill", "decode", "served"]
    decides: bool
    tokens: int
    floor: float
    mean_kl: float | None
    measures: tuple[Measure, ...]
    kl: Distribution
    top1_by_margin: tuple[Agreement, ...]
    by_document: tuple[Document, ...]


class Curves(_Read):
    """The error behind each layer."""

    port: tuple[float | None, ...]
    floor: tuple[float | None, ...]


class Step(_Read):
    """A step of the error: in which half of which layer, from which value to which."""

    layer: int
    half: str
    before: float
    behind: float | None


class Layers(_Read):
    """Everything measured at layers."""

    reference: Literal["oracle", "native"]
    positions: int
    curves: dict[str, Curves]
    step: Step | None
    measures: tuple[Measure, ...]


class Figures(_Read):
    """All figures of the stage."""

    comparisons: tuple[Comparison, ...]
    ratio: dict[str, Measure]
    layers: Layers | None = None
    served: Served | None = None
    continuations: GateFigures | None = None


def short(value: float | None) -> str:
    """Format with four digits and a typographic minus."""
    return "not defined" if value is None else f"{value:.4g}".replace("-", "−")

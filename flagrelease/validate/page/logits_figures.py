"""What the logits stage's figures hold, as the page reads them; `validate.logits.verdict` makes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.records.report import Verdict

REFERENCES = {"oracle": "the BF16 oracle", "native": "the native run"}


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True)


class Measure(_Read):
    """One limit and what was measured."""

    name: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    verdict: Verdict


class Distribution(_Read):
    """KL of tokens: counts between `edges` (log10 of nats), and `below` the first."""

    edges: tuple[float, ...]
    histogram: tuple[int, ...]
    below: int
    quantiles: dict[str, float]


class Agreement(_Read):
    """Tokens where the reference is ahead by more than `margin` nats, and how many of them agree."""

    margin: float
    tokens: int
    agree: float | None


class Document(_Read):
    """Mean KL over one document."""

    name: str
    kind: str
    tokens: int
    mean_kl: float | None


class Comparison(_Read):
    """One replay against one reference."""

    reference: Literal["oracle", "native"]
    replay: Literal["prefill", "decode"]
    decides: bool
    tokens: int
    floor: float
    mean_kl: float | None
    measures: tuple[Measure, ...]
    kl: Distribution
    top1_by_margin: tuple[Agreement, ...]
    by_document: tuple[Document, ...]


class Curves(_Read):
    """Error behind each layer."""

    port: tuple[float | None, ...]
    floor: tuple[float | None, ...]


class Step(_Read):
    """Where the error steps up: in which half of which layer, from what to what."""

    layer: int
    half: str
    before: float
    behind: float | None


class Layers(_Read):
    """What was seen at every layer."""

    reference: Literal["oracle", "native"]
    positions: int
    curves: dict[str, Curves]
    step: Step | None
    measures: tuple[Measure, ...]


class Figures(_Read):
    """What `validate.logits.verdict` makes."""

    comparisons: tuple[Comparison, ...]
    ratio: dict[str, Measure]
    layers: Layers | None = None


def short(value: float | None) -> str:
    """Four figures, with a minus sign that is one."""
    return "not defined" if value is None else f"{value:.4g}".replace("-", "−")

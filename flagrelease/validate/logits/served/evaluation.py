"""What a server told of the documents, against the runs of a baseline: figures of tokens, and how far lists reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flagrelease.validate.logits.baseline import Baseline, Reference
from flagrelease.validate.logits.distribution import Figures, Kept, part
from flagrelease.validate.logits.documents import Document
from flagrelease.validate.logits.served.bounds import LEAST, NOTHING, Bounds, bound, listed_of
from flagrelease.validate.logits.served.reading import PromptScores

_ENOUGH = 8192  # tokens from which the share that lists show is measured


@dataclass(frozen=True, slots=True)
class ServedDocument:
    """One document: `figures` whose KL is the lower bound of each token, and all bounds."""

    figures: Figures
    bounds: Bounds


def evaluate(kept: Kept, scores: PromptScores, vocabulary: int) -> ServedDocument:
    """Compare a document's scores with the reference's prefill run of it.

    Args:
        kept: the reference; row n is the distribution behind token n.
        scores: what the server told.
        vocabulary: tokens that the model has.
    """
    listed = scores.listed
    rows = part(kept, scores.first - 1, len(listed.target))
    real = listed.ids != NOTHING
    finite = ~(np.isnan(listed.logq) & real).any(-1)
    listed = replace(listed, logq=np.nan_to_num(listed.logq, nan=LEAST), ceiling=np.nan_to_num(listed.ceiling, nan=0.0))
    bounds = bound(rows, listed, vocabulary)
    told = np.where(real, listed.logq, -np.inf)
    first = np.where(listed.ids == rows.ids[:, :1], told, -np.inf).max(-1)
    figures = Figures(
        kl=np.where(finite, bounds.lower, 0.0),
        margin=rows.logp[:, 0] - rows.logp[:, 1],
        agree=(first == told.max(-1)) & finite,
        reference=rows.target,
        tested=np.nan_to_num(listed.target, nan=LEAST).astype(np.float32),
        tail=bounds.unlisted,
        finite=finite,
    )
    return ServedDocument(figures, bounds)


def visible_share(baseline: Baseline, reference: Reference, documents: Sequence[Document], alternatives: int) -> float:
    """Which part of the KL between the source's two runs lists of this length would show, from 0 to 1.

    Both runs are whole in the baseline, so the bound from a short list can be compared with that from all that is kept.
    They differ by rounding, which moves every token a little. Whatever differs so shows about the same part; a fault
    that moves unlisted tokens only does not. NaN where the runs are equal.
    """
    other: Reference = "oracle" if reference == "native" else "native"
    shown = whole = 0.0
    scored = 0
    for number, document in enumerate(documents):
        targets = np.array(document.tokens[1:], np.int64)
        kept, against = (part(baseline.kept(run, number)["prefill"], 0, len(targets)) for run in (reference, other))
        few, many = (
            bound(kept, listed_of(against, targets, count), baseline.record.vocabulary).lower.sum()
            for count in (min(alternatives, against.ids.shape[1]), against.ids.shape[1])
        )
        shown, whole, scored = shown + float(few), whole + float(many), scored + len(targets)
        if scored >= _ENOUGH:
            break
    return shown / whole if whole > 0 else float("nan")


def inferred(documents: Sequence[Figures], share: float) -> list[Figures]:
    """The same tokens with the KL that their lists suggest: the bound, divided by the share that lists show."""
    return [replace(figures, kl=figures.kl / share) for figures in documents]

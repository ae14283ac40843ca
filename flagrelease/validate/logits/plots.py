"""What the page draws of a comparison, as data: distribution of KL, agreement by margin, KL by document."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

from flagrelease.validate.logits.baseline import DocumentRecord
from flagrelease.validate.logits.distribution import Array, Figures
from flagrelease.validate.logits.sums import MARGINS, Sums

# Decades from 1e-10 to 1e2 nats in quarters; what is below, exact zeros among it, is counted apart.
_EDGES = np.linspace(-10, 2, 49)
QUANTILES = (0.5, 0.9, 0.99, 0.999)


def kl_distribution(documents: Sequence[Figures]) -> dict[str, JsonValue]:
    """`histogram`: counts between `edges` (log10 of nats), and `below` them; `quantiles` by their share of tokens."""
    kl = np.concatenate([figures.kl[figures.finite] for figures in documents])
    if not len(kl):
        return {"edges": _EDGES.tolist(), "histogram": [0] * (len(_EDGES) - 1), "below": 0, "quantiles": {}}
    seen = kl[kl >= 10 ** _EDGES[0]]
    counts, _ = np.histogram(np.clip(np.log10(seen), _EDGES[0], _EDGES[-1]), _EDGES)
    return {
        "edges": _EDGES.tolist(),
        "histogram": counts.tolist(),
        "below": len(kl) - len(seen),
        "quantiles": {str(q): float(np.quantile(kl, q)) for q in QUANTILES},
    }


def agreement_by_margin(documents: Sequence[Figures]) -> list[JsonValue]:
    """Tokens above each margin of the reference, and the share of them with the same most likely token (or null)."""
    margin, agree = (_all(documents, name) for name in ("margin", "agree"))
    rows: list[JsonValue] = []
    for least in MARGINS:
        above = agree if least == 0 else agree[margin > least]  # 0: all tokens, ties too
        rows.append({"margin": least, "tokens": len(above), "agree": float(above.mean()) if len(above) else None})
    return rows


def by_document(records: Sequence[DocumentRecord], sums: Sums) -> list[JsonValue]:
    """Name, kind, scored tokens and mean KL of each document."""
    return [
        {"name": record.name, "kind": record.kind, "tokens": int(tokens), "mean_kl": _number(kl)}
        for record, tokens, kl in zip(records, sums.field("tokens"), sums.mean_kl, strict=True)
    ]


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _all(documents: Sequence[Figures], name: str) -> Array:
    return np.concatenate([getattr(figures, name)[figures.finite] for figures in documents])

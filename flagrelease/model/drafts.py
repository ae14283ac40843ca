"""Draft stages, which every family has under one name, and the config of a model without them.

The stages only guess tokens, which the model then checks, so a model without them answers alike.
"""

from __future__ import annotations

from typing import Any

DRAFT_PREFIX = "mtp."
_DSPARK_PREFIX = "dspark_"


def without_drafts(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """A flat `config.json` or `inference/config.json` of the model alone, as a new document.

    Args:
        config: the document. `compress_ratios` has an entry for each layer and then one for each stage.
        layers: of the model, stages not counted.
    """
    kept = {key: value for key, value in config.items() if not key.startswith(_DSPARK_PREFIX)}
    for key in ("num_nextn_predict_layers", "n_mtp_layers"):
        if key in kept:
            kept[key] = 0
    if "compress_ratios" in kept:
        kept["compress_ratios"] = kept["compress_ratios"][:layers]
    return kept

"""A V4.1 model without its draft stages: the configs of a release that leaves out every `mtp.*` tensor."""

from __future__ import annotations

from typing import Any

from flagrelease.model.v41.config import TEXT

_DSPARK_PREFIX = "dspark_"


def without_drafts(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """`config.json` (nested) or `inference/config.json` (flat) of the model alone, as a new document.

    Args:
        config: the document. `compress_ratios` has an entry for each layer and then one for each stage.
        layers: of the model, stages not counted.
    """
    if TEXT in config:
        return config | {TEXT: without_drafts(config[TEXT], layers)}
    kept = {key: value for key, value in config.items() if not key.startswith(_DSPARK_PREFIX)}
    for key in ("num_nextn_predict_layers", "n_mtp_layers"):
        if key in kept:
            kept[key] = 0
    if "compress_ratios" in kept:
        kept["compress_ratios"] = kept["compress_ratios"][:layers]
    return kept

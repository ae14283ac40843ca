"""A V4.1 model without its draft stages: the configs of a release that leaves out every `mtp.*` tensor."""

from __future__ import annotations

from typing import Any

from flagrelease.model import drafts
from flagrelease.model.v41.config import TEXT


def without_drafts(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """`config.json` (nested) or `inference/config.json` (flat) of the model alone, as a new document.

    Args:
        config: the document.
        layers: of the model, stages not counted.
    """
    if TEXT in config:
        return config | {TEXT: drafts.without_drafts(config[TEXT], layers)}
    return drafts.without_drafts(config, layers)

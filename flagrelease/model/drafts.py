"""The name space of the draft stages, in every family. They only guess tokens, which the model then checks."""

from __future__ import annotations

DRAFT_PREFIX = "mtp."

"""What a server tells of its drafts at /metrics: this package's counters, and vLLM's under their own names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flagrelease.engine.batch.acceptance import Acceptance

# Of each server: verifications, drafts verified by place, drafts accepted by place, and the number of the first place.
# vLLM verifies every draft that it makes, and counts them in sum only.
_NAMES = (
    ("flagrelease_verifications_total", "flagrelease_verified_drafts_total", "flagrelease_accepted_drafts_total", 1),
    ("vllm:spec_decode_num_drafts_total", None, "vllm:spec_decode_num_accepted_tokens_per_pos_total", 0),
)
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \S+)?$", re.MULTILINE)
_POSITION = re.compile(r'(?:^|,)position="(\d+)"')
DATA = (
    "counted by the server, whoever asked it meanwhile, on lists of random words, which are not what users write; "
    "of random weights it says nothing"
)


def read_acceptance(metrics: str) -> Acceptance | None:
    """The counts of drafts in a document of Prometheus' text format; None if the server counts none.

    Counts of several engines or models are added up.
    """
    found: dict[str, dict[int | None, int]] = {}
    for name, labels, value in _SAMPLE.findall(metrics):
        place = _POSITION.search(labels)
        counts, key = found.setdefault(name, {}), None if place is None else int(place[1])
        counts[key] = counts.get(key, 0) + _whole(value)
    for verifications, verified, accepted, first in _NAMES:
        if verifications in found:
            count = sum(found[verifications].values())
            right = _by_place(found.get(accepted, {}), first)
            made = (count,) * len(right) if verified is None else _by_place(found.get(verified, {}), first)
            return Acceptance(count, made, right)
    return None


def _by_place(counts: Mapping[int | None, int], first: int) -> tuple[int, ...]:
    places = [place for place in counts if place is not None]
    return tuple(counts.get(place, 0) for place in range(first, max(places, default=first - 1) + 1))


def _whole(value: str) -> int:
    """Counters may be written as floats; what is no number is no count."""
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        return 0

"""Room for sequences on the ranks' devices: what their caches take, and caches that all ranks have or none."""

from __future__ import annotations

import json
from dataclasses import dataclass

from flagrelease.engine.control import gather_bytes
from flagrelease.engine.loaded import DEFAULT_CHUNK
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model
from flagrelease.errors import ResourceError
from flagrelease.model.v4.cache_size import sequence_lengths


@dataclass(frozen=True, slots=True)
class SequenceRoom:
    """What sequences of `context` tokens take: bytes of caches each, and how many fit beside the weights."""

    context: int
    bytes: int
    fit: int


def rooms(model: Model) -> tuple[SequenceRoom, ...]:
    """Of sequences as they are served, in chunks of `DEFAULT_CHUNK` tokens; over ranks, on this one."""
    free, _ = model.device.memory()
    each = [(length, model.cache_bytes(1, length, DEFAULT_CHUNK)) for length in sequence_lengths(model.config)]
    return tuple(SequenceRoom(context, size, free // size) for context, size in each)


def caches(model: Model, rows: int, context: int) -> Cache:
    """Empty caches, on every rank.

    Raises:
        ResourceError: a rank has no room. Every rank raises it: one that went on alone would wait for the others.
    """
    cache, refusal, control = None, None, model.groups.control
    try:
        cache = model.new_cache(rows, context)
    except ResourceError as error:
        refusal = str(error)
    if control is not None:
        said = [json.loads(each) for each in gather_bytes(control, json.dumps(refusal).encode())]
        refusal = next((text for text in said if text is not None), None)
    if refusal is not None:
        raise ResourceError(refusal)
    assert cache is not None
    return cache

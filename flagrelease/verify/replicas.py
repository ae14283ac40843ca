"""The check `replicas`: tensors that several ranks hold have the same bytes on each of them.

Covers replicated tensors and, where o-groups are shared, the wo_a and wo_b pieces of one group. Never sampled: a
rank that differs gives wrong answers only on that rank, which nothing else would show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flagrelease.shard.header import TensorMeta
from flagrelease.verify.gather import CHUNK_BYTES, read_into
from flagrelease.verify.result import Check, CheckLog, Finding
from flagrelease.verify.structure import StoredRelease
from flagrelease.verify.workers import Workers


def check_replicas(release: StoredRelease, workers: Workers) -> Check:
    """Compare every further copy of a piece with the first one, byte for byte."""
    log = CheckLog("replicas")
    shared = [copies for tensor in release.tensors.values() for copies in tensor.boxes.values() if len(copies) > 1]
    workers.each(lambda copies: _compare(release, copies, workers, log), shared)
    return log.close("pieces that several ranks hold, byte for byte against the lowest rank's")


def _compare(release: StoredRelease, copies: Sequence[TensorMeta], workers: Workers, log: CheckLog) -> None:
    first, others = copies[0], list(copies[1:])
    log.saw(1, first.nbytes * len(copies))
    mine, theirs = np.empty(CHUNK_BYTES, np.uint8), np.empty(CHUNK_BYTES, np.uint8)
    for position in range(0, first.nbytes, CHUNK_BYTES):
        count = min(CHUNK_BYTES, first.nbytes - position)
        read_into(first.file, first.begin + position, mine[:count])
        for other in others.copy():
            read_into(other.file, other.begin + position, theirs[:count])
            workers.advance(count)
            if not np.array_equal(mine[:count], theirs[:count]):
                offset = other.begin + position + int(np.argmax(mine[:count] != theirs[:count]))
                rule = f"differs from the copy in {release.path_of(first.file)}"
                log.add(Finding(tensor=first.name, file=release.path_of(other.file), offset=offset, rule=rule))
                others.remove(other)

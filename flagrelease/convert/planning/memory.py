"""How much memory and how many threads a conversion takes. Needs nothing heavy, so that plans can say it."""

from __future__ import annotations

import os

from flagrelease.convert.planning.plan import Plan
from flagrelease.shard.writer import BLOCK_BYTES

# Output of one chunk, about: large enough that calls do not matter, small enough to stay in the processor's cache.
CHUNK_BYTES = 8 << 20
# A worker fills one buffer while the lanes empty another; decoding holds the codes beside the result.
BUFFERS_PER_WORKER = 3


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bound(plan: Plan, workers: int) -> int:
    """Bytes a conversion needs at most beside the interpreter: buffers, copies of column cuts, blocks of open files."""
    # All ranks of an mp release grow together; of an hf release, at most as many files as workers write to them.
    open_files = min(len(plan.files), sum(release.target.mp or workers for release in plan.releases))
    return 2 * workers * BUFFERS_PER_WORKER * CHUNK_BYTES + open_files * BLOCK_BYTES + plan.source.files.memory_bytes

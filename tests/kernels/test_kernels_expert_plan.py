"""The list of pairs by expert and its chunks, against a list made in Python."""

from __future__ import annotations

import pytest
import torch
from kernel_comparison import poisoned

from flagrelease.engine.kernels.experts.expert_plan import plan_chunks


@pytest.mark.parametrize(
    ("pairs", "experts", "first", "chunk"),
    [(12, 3, 2, 1), (7, 9, 0, 2), (6, 7, 100, 2), (40, 5, 3, 4), (1100, 4, 0, 2)],
)
def test_every_pair_is_in_one_chunk_of_its_expert(
    pairs: int, experts: int, first: int, chunk: int, device: torch.device
) -> None:
    ids = torch.randint(-1, 9, (pairs,), dtype=torch.int32)
    with poisoned():
        order, chunks = plan_chunks(ids.to(device), first, experts, chunk)
    order, found = order.cpu(), {e: [] for e in range(-1, experts)}  # type: ignore[var-annotated]
    used = []
    for e, begin, end in chunks.tolist():
        assert 0 <= end - begin <= chunk
        found[e] += order[begin:end].tolist()
        used += [e] * (begin < end)
    expected = {e: (ids == first + e).nonzero().flatten().tolist() for e in range(experts)}
    expected[-1] = ((ids < first) | (ids >= first + experts)).nonzero().flatten().tolist()
    assert found == expected
    # As few as can be, and those of one expert side by side, so that its weights are in the cache for the next one.
    assert used == sorted(used, key=lambda e: e % (experts + 1))  # -1 last
    assert len(used) == sum(-(-len(p) // chunk) for p in expected.values())

"""Steps whose tokens are shared out over ranks give what one rank gives, and what ranks give that share nothing out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, random_tokens, small_config
from ranks import on_ranks

from flagrelease import engine
from flagrelease.engine import parallel
from flagrelease.engine.parallel import Groups

LIMIT = 1e-3  # float32; a different order of additions only


def both_ways(release: Path) -> dict[str, torch.Tensor]:
    """Logits of chunks of 32 tokens, of which the last is short, and of two rows of different lengths."""
    results = {}
    for name, least in (("spread", 8), ("whole", 10**9)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "SPREAD", least)
            results[name] = _logits(release)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "SPREAD", 8)
        patch.setattr(Groups, "own", lambda groups, x: x.chunk(groups.mp)[0] if groups.is_spread else x)
        results["planted: every rank takes the first share"] = _logits(release)
    return results


def _logits(release: Path) -> torch.Tensor:
    model = engine.load(release, "bf16", torch.float32, chunk=32)
    rows = [model.logits(random_tokens(90, seed=1))]
    cache = model.new_cache(rows=2, context=64)
    rows.append(model.extend(cache, [random_tokens(n, seed=n) for n in (40, 25)]))
    return torch.cat(rows)


def test_spread_steps_of_two_ranks(tmp_path: Path) -> None:
    release = Checkpoint(small_config(num_attention_heads=8, o_lora_rank=256), seed=5).write_hf(tmp_path, "bf16")
    got = on_ranks(2, both_ways, release, backend="flagcx")
    expected = _logits(release)
    assert (got["whole"] - expected).abs().max() <= LIMIT
    assert (got["spread"] - expected).abs().max() <= LIMIT
    assert (got.pop("planted: every rank takes the first share") - expected).abs().max() > 100 * LIMIT


def test_which_steps_are_spread() -> None:
    world = object()
    two, shared = Groups(2, 0, world=world), Groups(16, 0, npg=2, o_mode="shared", world=world)  # type: ignore[arg-type]
    assert [two.spread(n).is_spread for n in (2046, 2048, 2049, 8192)] == [False, True, False, True]
    assert not shared.spread(8192).is_spread
    assert not Groups(1, 0).spread(8192).is_spread


def by_nccl(release: Path) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Logits of one device, alone and as the only rank of a job that shares tokens out; the second ones twice."""
    alone = engine.load(release, "bf16", torch.float32, "cuda")
    spread = replace(alone, groups=Groups(1, 0, world=torch.distributed.group.WORLD))
    spread.chunk = alone.chunk = 32
    tokens = random_tokens(90, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "SPREAD", 8)
        x, out = torch.randn(64, 128, device="cuda"), torch.empty(64, 128, device="cuda")
        groups = spread.groups.spread(64)

        def queue() -> None:
            out.copy_(groups.together(groups.sum_tokens(x), (64, 128)))

        replay = alone.device.capture(queue)
        replay()
        codes = x.to(torch.float8_e4m3fn)
        same = torch.equal(out, x) and torch.equal(groups.gather_rows(codes).float(), codes.float())
        return alone.logits(tokens), spread.logits(tokens), groups.is_spread and same


@pytest.mark.gpu
def test_nccl_takes_the_collectives_of_spread_steps(tmp_path: Path) -> None:
    """With one rank, as a device takes only one: that they are called as NCCL wants it, also when they are recorded."""
    release = Checkpoint(small_config(num_attention_heads=8, o_lora_rank=256), seed=5).write_hf(tmp_path, "bf16")
    alone, spread, recorded = on_ranks(1, by_nccl, release, backend="nccl")
    assert recorded
    assert (alone - spread).abs().max() <= LIMIT

"""Tensor parallelism on gloo: every number of ranks and both o-group layouts give one rank's logits and text.

Backends with a vendor's name are gloo, and refuse what the vendor's does not document (`recording_groups`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, random_tokens, small_config
from ranks import OMode, on_ranks, write_mp

from flagrelease import engine
from flagrelease.engine.numerics import NumericsName

TOKENS = random_tokens(150)
# float32: only the order of additions differs.
LIMIT = 1e-3


Job = tuple[Path, NumericsName, torch.dtype]
Result = tuple[torch.Tensor, list[int]]
EXACT: tuple[NumericsName, torch.dtype] = ("bf16", torch.float32)


def logits_and_text(release: Path, numerics: NumericsName, dtype: torch.dtype) -> Result:
    """Prefill logits of all positions, and 12 greedy tokens after them."""
    model = engine.load(release, numerics, dtype)
    logits = model.logits(TOKENS)
    cache = model.new_cache(rows=1, context=len(TOKENS) + 12)
    after, text = model.prefill(cache, 0, TOKENS), []
    for _ in range(12):
        text.append(int(after.argmax()))
        after = model.decode(cache, [text[-1]])[0]
    return logits, text


def each(jobs: list[Job]) -> list[Result]:
    """Several releases in one set of processes: starting them takes longer than the work."""
    return [logits_and_text(*job) for job in jobs]


def assert_same(got: Result, expected: Result) -> None:
    assert (got[0] - expected[0]).abs().max() <= LIMIT
    assert got[1] == expected[1]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """16 heads in 8 o-groups: cut over 2 to 16 ranks."""
    checkpoint = Checkpoint(
        small_config(
            num_attention_heads=16, o_groups=8, n_routed_experts=16, num_hidden_layers=3, o_lora_rank=256,
            compress_ratios=[0, 4, 128, 0],
        ),
        seed=3,
    )  # fmt: skip
    return checkpoint, checkpoint.write_hf(tmp_path_factory.mktemp("wide"), "bf16")


@pytest.mark.parametrize("ranks", [2, 8])
def test_ranks_equal_one(wide: tuple[Checkpoint, Path], tmp_path: Path, ranks: int) -> None:
    checkpoint, alone = wide
    cut = write_mp(checkpoint, tmp_path, "bf16", ranks)
    assert_same(on_ranks(ranks, logits_and_text, cut, *EXACT, backend="mccl"), logits_and_text(alone, *EXACT))


@pytest.mark.slow
def test_sixteen_ranks_over_eight_o_groups_equal_one(wide: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, alone = wide
    modes: tuple[OMode, ...] = ("shared", "split")
    jobs = [(write_mp(checkpoint, tmp_path / mode, "bf16", 16, mode), *EXACT) for mode in modes]
    expected = logits_and_text(alone, *EXACT)
    for got in on_ranks(16, each, jobs):
        assert_same(got, expected)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Result, Result]]:
    """What four ranks give and what one gives: with 4 o-groups, and with 2, each of which two ranks share."""
    folder = tmp_path_factory.mktemp("four")
    shape = {
        "num_attention_heads": 8,
        "num_hidden_layers": 3,
        "compress_ratios": [0, 4, 128, 0],
        "o_lora_rank": 256,
    }
    own, two = (Checkpoint(small_config(**shape, o_groups=groups), seed=4) for groups in (4, 2))
    native = two.write_hf(folder / "native", "native")
    jobs: dict[str, tuple[Job, Job]] = {
        "whole groups": (
            (write_mp(own, folder / "own", "bf16", 4), *EXACT),
            (own.write_hf(folder / "own-hf", "bf16"), *EXACT),
        ),
        "hf": ((native, *EXACT), (native, *EXACT)),
    }
    for mode in ("shared", "split"):
        cut = write_mp(two, folder / mode, "bf16", 4, mode)
        jobs[f"bf16 {mode}"] = ((cut, *EXACT), (native, *EXACT))
        cut = write_mp(two, folder / f"native-{mode}", "native", 4, mode, parts=2)
        jobs[f"native {mode}, decoded"] = ((cut, *EXACT), (native, *EXACT))
        jobs[f"native {mode}"] = ((cut, "native", torch.bfloat16), (native, "native", torch.bfloat16))
    got = on_ranks(4, each, [four for four, _ in jobs.values()], backend="hccl")
    expected = each([one for _, one in jobs.values()])
    return dict(zip(jobs, zip(got, expected, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["whole groups", "hf", "bf16 shared", "bf16 split", "native shared, decoded", "native split, decoded"],
)
def test_four_ranks_equal_one(four_ranks: dict[str, tuple[Result, Result]], name: str) -> None:
    assert_same(*four_ranks[name])


@pytest.mark.parametrize("mode", ["shared", "split"])
def test_native_numerics_on_four_ranks(four_ranks: dict[str, tuple[Result, Result]], mode: str) -> None:
    # Last bits are amplified by rounding: the distribution is compared, not each number.
    (got, _), (expected, _) = four_ranks[f"native {mode}"]
    assert (got - expected).abs().mean() <= 0.2
    assert (got.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9
    # planted: other numerics are further away
    (other, _), _ = four_ranks[f"native {mode}, decoded"]
    assert (other - expected).abs().mean() > 0.4


def test_swapped_columns_are_caught(wide: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    # The planted defect: every shape is right, but each rank has the other's part of wo_b.
    checkpoint, alone = wide
    swapped = Checkpoint(checkpoint.config, seed=3)
    for name in [name for name in swapped.values if name.endswith("attn.wo_b.weight")]:
        swapped.values[name] = torch.cat(swapped.values[name].chunk(2, 1)[::-1], 1)
    got, _ = on_ranks(2, logits_and_text, write_mp(swapped, tmp_path, "bf16", 2), *EXACT)
    assert (got - logits_and_text(alone, *EXACT)[0]).abs().max() > 100 * LIMIT

"""Tensor parallelism on gloo: every number of ranks and both o-group layouts give one rank's logits and text."""

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


def logits_and_text(release: Path, numerics: NumericsName, dtype: torch.dtype) -> tuple[list[list[float]], list[int]]:
    """Prefill logits of all positions, and 12 greedy tokens after them."""
    model = engine.load(release, numerics, dtype)
    logits = model.logits(TOKENS)
    cache = model.new_cache(rows=1, context=len(TOKENS) + 12)
    after, text = model.prefill(cache, 0, TOKENS), []
    for _ in range(12):
        text.append(int(after.argmax()))
        after = model.decode(cache, [text[-1]])[0]
    return logits.tolist(), text


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """16 heads in 8 o-groups: cut over 2 to 16 ranks."""
    checkpoint = Checkpoint(
        small_config(
            num_attention_heads=16, o_groups=8, n_routed_experts=16, num_hidden_layers=3, num_hash_layers=1,
            compress_ratios=[0, 4, 128, 0], head_dim=128, vocab_size=320, o_lora_rank=256,
        ),
        seed=3,
    )  # fmt: skip
    return checkpoint, tmp_path_factory.mktemp("wide")


@pytest.fixture(scope="module")
def four_groups(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """8 heads in 2 o-groups: 4 ranks share one by two."""
    checkpoint = Checkpoint(
        small_config(
            num_attention_heads=8, o_groups=2, num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], o_lora_rank=256
        ),
        seed=4,
    )
    return checkpoint, tmp_path_factory.mktemp("four")


def compare(checkpoint: Checkpoint, folder: Path, ranks: int, o_mode: OMode) -> None:
    alone = checkpoint.write_hf(folder / "hf", "bf16")
    cut = write_mp(checkpoint, folder / f"mp{ranks}-{o_mode}", "bf16", ranks, o_mode)
    expected, text = logits_and_text(alone, "bf16", torch.float32)
    got, got_text = on_ranks(ranks, logits_and_text, cut, "bf16", torch.float32)
    assert (torch.tensor(got) - torch.tensor(expected)).abs().max() <= LIMIT
    assert got_text == text


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_equal_one(wide: tuple[Checkpoint, Path], ranks: int) -> None:
    compare(*wide, ranks, "shared")


@pytest.mark.parametrize("o_mode", ["shared", "split"])
def test_two_ranks_an_o_group_equal_one(four_groups: tuple[Checkpoint, Path], o_mode: OMode) -> None:
    compare(*four_groups, 4, o_mode)


@pytest.mark.slow
@pytest.mark.parametrize("o_mode", ["shared", "split"])
def test_sixteen_ranks_over_eight_o_groups_equal_one(wide: tuple[Checkpoint, Path], o_mode: OMode) -> None:
    compare(*wide, 16, o_mode)


@pytest.mark.parametrize("o_mode", ["shared", "split"])
def test_native_release_on_four_ranks(four_groups: tuple[Checkpoint, Path], o_mode: OMode) -> None:
    checkpoint, folder = four_groups
    alone = checkpoint.write_hf(folder / "native", "native")
    cut = write_mp(checkpoint, folder / f"native-mp4-{o_mode}", "native", 4, o_mode, parts=2)
    # decoded exactly: the same comparison as above, through FP4 (F4) and FP8 files
    expected, text = logits_and_text(alone, "bf16", torch.float32)
    got, got_text = on_ranks(4, logits_and_text, cut, "bf16", torch.float32)
    assert (torch.tensor(got) - torch.tensor(expected)).abs().max() <= LIMIT
    assert got_text == text
    # and in native numerics, where last bits are amplified by rounding: the distribution, not each number
    expected, _ = logits_and_text(alone, "native", torch.bfloat16)
    got, _ = on_ranks(4, logits_and_text, cut, "native", torch.bfloat16)
    assert (torch.tensor(got) - torch.tensor(expected)).abs().mean() <= 0.2
    assert (torch.tensor(got).argmax(-1) == torch.tensor(expected).argmax(-1)).float().mean() > 0.9


def test_hf_release_is_cut_while_loading(four_groups: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = four_groups
    alone = checkpoint.write_hf(folder / "native", "native")
    expected, text = logits_and_text(alone, "bf16", torch.float32)
    got, got_text = on_ranks(4, logits_and_text, alone, "bf16", torch.float32)
    assert (torch.tensor(got) - torch.tensor(expected)).abs().max() <= LIMIT
    assert got_text == text


def test_swapped_rank_files_are_caught(four_groups: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    # The planted defect: same shapes, wrong parts. (Experts would be missing by name, so they stay.)
    checkpoint, _ = four_groups
    swapped = Checkpoint(checkpoint.config, seed=4)
    for name in [name for name in swapped.values if name.endswith("attn.wo_b.weight")]:
        swapped.values[name] = torch.cat(swapped.values[name].chunk(2, 1)[::-1], 1)
    alone = checkpoint.write_hf(tmp_path / "hf", "bf16")
    expected, _ = logits_and_text(alone, "bf16", torch.float32)
    got, _ = on_ranks(2, logits_and_text, write_mp(swapped, tmp_path / "mp2", "bf16", 2), "bf16", torch.float32)
    assert (torch.tensor(got) - torch.tensor(expected)).abs().max() > 100 * LIMIT

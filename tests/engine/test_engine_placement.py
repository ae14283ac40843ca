"""What a rank holds of the real models, against figures computed from DeepSeek's and FlagOS' rules (facts 5.2, 5.3)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from engine_checkpoint import small_config

from flagrelease.engine.placement import RankSlice, local_pieces
from flagrelease.errors import UsageError
from flagrelease.model.tensors import Storage
from flagrelease.model.v4.config import ModelConfig, parse_config
from flagrelease.records.manifest import OGroups

CONFIGS = Path(__file__).parent.parent / "golden" / "configs"
BYTES = {Storage.LINEAR: 2, Storage.EXPERT: 2, Storage.BF16: 2, Storage.F32: 4, Storage.I64: 8}


def real(name: str) -> ModelConfig:
    return parse_config(json.loads((CONFIGS / f"{name}.json").read_text()), name)


# name, ranks, o-group layout, tensors of rank 0 in a BF16 release, GiB
@pytest.mark.parametrize(
    ("name", "ranks", "o_mode", "tensors", "gib"),
    [
        ("flash", 8, None, 5452, 70.77),
        ("flash", 16, "shared", 3340, 37.45),
        ("flash", 16, "split", 3340, 37.11),
        ("flash", 32, "shared", 2284, 20.79),
        ("flash", 32, "split", 2284, 20.28),
        ("pro", 8, None, 10668, 382.46),
        ("pro", 16, None, 6204, 197.04),
        ("pro", 32, "shared", 3972, 105.00),
        ("pro", 32, "split", 3972, 104.34),
    ],
)
def test_tensors_and_bytes_of_a_rank(name: str, ranks: int, o_mode: OGroups | None, tensors: int, gib: float) -> None:
    pieces = local_pieces(real(name), ranks, 0, o_mode).values()
    assert len(pieces) == tensors
    size = sum(math.prod(piece.shape) * BYTES[piece.spec.storage] for piece in pieces)
    assert round(size / 2**30, 2) == gib


def test_shapes_of_flash_mp16() -> None:
    pieces = local_pieces(real("flash"), 16, 3, "shared")
    at = "layers.2.attn"
    assert pieces[f"{at}.wq_b.weight"].ranges == ((6144, 8192), (0, 1024))
    assert pieces[f"{at}.attn_sink"].ranges == ((12, 16),)
    assert pieces[f"{at}.indexer.weights_proj.weight"].shape == (4, 4096)
    assert pieces[f"{at}.wo_a.weight"].ranges == ((1024, 2048), (0, 4096))  # ranks 2 and 3 share o-group 1
    assert pieces[f"{at}.wo_b.weight"].ranges == ((0, 4096), (1024, 2048))
    assert "layers.5.ffn.experts.47.w1.weight" not in pieces
    assert "layers.5.ffn.experts.48.w1.weight" in pieces
    split = local_pieces(real("flash"), 16, 3, "split")
    assert split[f"{at}.wo_a.weight"].ranges == ((1024, 2048), (2048, 4096))
    assert split[f"{at}.wo_b.weight"].ranges == ((0, 4096), (1536, 2048))


def covered(pieces: list[RankSlice]) -> int:
    """Elements of the distinct parts; the parts of two ranks are the same or do not meet."""
    return sum(math.prod(end - begin for begin, end in ranges) for ranges in {piece.ranges for piece in pieces})


@pytest.mark.parametrize(("ranks", "o_mode"), [(1, None), (4, None), (8, "shared"), (8, "split"), (16, "split")])
def test_ranks_together_hold_everything(ranks: int, o_mode: OGroups | None) -> None:
    config = parse_config(small_config(num_attention_heads=16, o_groups=4, n_routed_experts=16), "test")
    held = [local_pieces(config, ranks, rank, o_mode) for rank in range(ranks)]
    for name, spec in {n: p.spec for pieces in held for n, p in pieces.items()}.items():
        assert covered([pieces[name] for pieces in held if name in pieces]) == math.prod(spec.shape), name


@pytest.mark.parametrize(
    ("ranks", "changes", "said"),
    [
        (3, {}, "num_attention_heads 4"),
        (4, {"index_n_heads": 2}, "index_n_heads 2"),
        (4, {"n_routed_experts": 6}, "n_routed_experts 6"),
        (4, {"vocab_size": 322}, "vocab_size 322"),
        (4, {"num_attention_heads": 12, "o_groups": 3, "n_routed_experts": 12}, "3 o_groups"),
    ],
)
def test_what_ranks_do_not_divide_is_named(ranks: int, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        local_pieces(parse_config(small_config(**changes), "test"), ranks, 0, None)

"""The second split table: boxes tile every tensor, and agree with plain loops and with the model's own table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_releases import CONFIG, OG, E, Tensors, checkpoint_tensors, cut

from flagrelease.errors import VerificationError
from flagrelease.model.tensors import Split
from flagrelease.model.v4.config import parse_config
from flagrelease.model.v4.inventory import inventory
from flagrelease.verify.splits import Box, Ranks, as_matrix, place

MODES = [(1, None), (2, None), (4, None), (8, "shared"), (8, "split")]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return checkpoint_tensors(torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("mp", "mode"), MODES)
def test_boxes_are_what_plain_loops_cut(tensors: Tensors, mp: int, mode: str | None) -> None:
    for name, tensor in tensors.items():
        if mode == "split" and name.endswith(".wo_b.scale"):
            continue  # 64 columns a rank are half a block, so this model has no quantised release of that kind
        boxes = place(name, tuple(tensor.shape), Ranks(mp, OG, E, mode))
        matrix = tensor.view(torch.uint8).reshape(as_matrix(tuple(tensor.shape))[0], -1)
        width = matrix.shape[1] // as_matrix(tuple(tensor.shape))[1]
        held: dict[int, torch.Tensor] = {
            rank: matrix[box.top : box.bottom, box.left * width : box.right * width]
            for box, ranks in boxes.items()
            for rank in ranks
        }
        for rank in range(mp):
            wanted = cut(name, tensor, rank, mp, mode)
            assert (rank in held) == (wanted is not None), name
            if wanted is not None:
                assert torch.equal(held[rank].reshape(-1), wanted.contiguous().view(torch.uint8).reshape(-1)), name


NAMES = ["embed.weight", "norm.weight", "layers.0.attn.wq_b.weight", "layers.3.attn.wo_a.weight"]
NAMES += ["mtp.0.attn.wo_b.scale", "layers.1.ffn.experts.5.w2.weight"]
SIZES = st.integers(1, 4)


@given(st.sampled_from(NAMES), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from(["shared", "split"]), SIZES, SIZES)
def test_boxes_tile_the_tensor(name: str, mp: int, mode: str, down: int, across: int) -> None:
    shape = (16 * down, 16 * across)
    boxes = place(name, shape, Ranks(mp, 4, 16, mode if mp > 4 else None))  # type: ignore[arg-type]
    covered = np.zeros(shape, int)
    for box in boxes:
        covered[box.top : box.bottom, box.left : box.right] += 1
    assert (covered == 1).all()
    ranks = [rank for held in boxes.values() for rank in held]
    assert len(ranks) == len(set(ranks))  # no rank holds two boxes of a tensor
    assert set(ranks) == set(range(mp)) or ".experts." in name


def test_both_tables_agree() -> None:
    """`flagrelease.model.v4.inventory` was written by another hand; an error in one of the two shows here."""
    config = parse_config(CONFIG, "test")
    ranks = Ranks(4, config.o_groups, config.n_routed_experts, None)
    for name, spec in inventory(config).items():
        boxes = place(name, spec.shape, ranks)
        rows, columns = as_matrix(spec.shape)
        whole = Box(0, rows, 0, columns)
        expected = {
            Split.NONE: {whole: (0, 1, 2, 3)},
            Split.EXPERT: {whole: ((spec.expert or 0) // 2,)},
            Split.O_GROUP_COLUMNS: {Box(0, rows, c * columns // 4, (c + 1) * columns // 4): (c,) for c in range(4)},
        }.get(spec.split, {Box(r * rows // 4, (r + 1) * rows // 4, 0, columns): (r,) for r in range(4)})
        assert boxes == expected, name


def test_flagos_example_of_shared_o_groups() -> None:
    """Flash mp16: ranks 2k and 2k + 1 hold piece k of 8 (FlagOS' convert.py: piece r // npg)."""
    rows, columns = 8192, 4096
    boxes = place("layers.0.attn.wo_a.weight", (rows, columns), Ranks(16, 8, 256, "shared"))
    assert boxes == {Box(1024 * k, 1024 * (k + 1), 0, columns): (2 * k, 2 * k + 1) for k in range(8)}
    split = place("layers.0.attn.wo_a.weight", (rows, columns), Ranks(16, 8, 256, "split"))
    assert split[Box(1024, 2048, 2048, 4096)] == (3,)


def test_dspark_markov_heads_are_cut_by_rows() -> None:
    assert len(place("mtp.2.markov_head.markov_w1.weight", (128, 4), Ranks(4, 4, 8, None))) == 4
    assert len(place("mtp.2.confidence_head.proj.weight", (1, 8), Ranks(4, 4, 8, None))) == 1


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"'embed.weight': dimension 0: 10 does not divide into 4"):
        place("embed.weight", (10, 8), Ranks(4, 4, 8, None))
    with pytest.raises(VerificationError, match="experts: 6 does not divide into 4"):
        place("layers.0.ffn.experts.0.w1.weight", (8, 8), Ranks(4, 4, 6, None))

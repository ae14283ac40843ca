"""DSpark's draft stages against a slow transcription of their formulas.

In float32 the whole way is compared, the target model included; `test_engine_dspark_rounded` has the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from dspark_small import CONTEXT, STAGES, TOKENS, WINDOW, features_of, greedy
from dspark_transcription import DsparkTranscription
from engine_checkpoint import Checkpoint, small_config
from ranks import on_ranks, write_mp
from torch import Tensor

from flagrelease import engine
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.numerics import NumericsName
from flagrelease.engine.v4.drafting import DsparkDrafting, open_drafting
from flagrelease.engine.v4.dspark import DsparkStages
from flagrelease.engine.v4.dspark_head import Drafts
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.errors import UsageError

LIMIT = 1e-3  # float32; a different order of additions only


def drafted(model: Model, features: Tensor, length: int, pieces: Sequence[int] = (), rows: int = 1) -> Drafts:
    """Drafts behind TOKENS[:length], whose last token the target has not seen; the others are read in `pieces`."""
    drafting = open_drafting(model, rows, CONTEXT)
    return draft_with(drafting, features, length, pieces)  # type: ignore[arg-type]


def draft_with(drafting: DsparkDrafting, features: Tensor, length: int, pieces: Sequence[int] = ()) -> Drafts:
    start, row = 0, len(drafting.cache.lengths) - 1
    for piece in pieces:
        drafting.read(
            slice(row, row + 1), features[None, start : start + piece], [TOKENS[start + 1 : start + piece + 1]]
        )
        start += piece
    following = [[]] * row + [TOKENS[start + 1 : length]]
    left = features[None, start : length - 1].expand(row + 1, -1, -1)
    return drafting.draft(left, following, greedy)


class Whole(NamedTuple):
    model: Model
    features: Tensor
    exact: DsparkTranscription
    hidden: list[Any]

    def worst(self, model: Model, features: Tensor, length: int, **how: Any) -> float:
        return self.apart(drafted(model, features, length, **how), length)

    def apart(self, got: Drafts, length: int) -> float:
        """The largest difference of a logit, of two drafts that chose the same tokens."""
        asked = iter(got.tokens[-1].tolist())
        _, logits, confidence = self.exact.draft(self.hidden[: length - 1], TOKENS[length - 1], lambda _: next(asked))
        assert got.confidence is not None
        worst = np.abs(got.logits[-1].numpy() - logits).max()
        return max(float(worst), 100 * float(np.abs(got.confidence[-1].numpy() - confidence).max()))


@pytest.fixture(scope="module")
def whole(dspark: tuple[Checkpoint, Path]) -> Whole:
    """The model in float32, and what the transcription makes of the target's layers."""
    checkpoint, release = dspark
    exact = DsparkTranscription(checkpoint.config, checkpoint.values, "float32")
    model = engine.load(release, "bf16", torch.float32, mtp=True)
    return Whole(model, features_of(model, TOKENS), exact, exact.main_hidden(TOKENS[:-1]))


def test_features_are_the_means_of_the_streams_behind_the_target_layers(whole: Whole) -> None:
    assert np.abs(whole.features[:-1].numpy() - np.array(whole.hidden)).max() <= LIMIT


@pytest.mark.parametrize(
    ("length", "pieces", "rows"),
    [(2, (), 1), (6, (), 1), (60, (), 1), (128, (), 1), (129, (), 2), (130, (100,), 1), (150, (), 1),
     (150, (140,), 2), (150, (1, 40, 100), 1)],
)  # fmt: skip
def test_drafts_are_those_of_the_formulas(whole: Whole, length: int, pieces: tuple[int, ...], rows: int) -> None:
    got = drafted(whole.model, whole.features, length, pieces, rows)
    tokens, _, _ = whole.exact.draft(whole.hidden[: length - 1], TOKENS[length - 1], lambda z: int(z.argmax()))
    assert got.tokens[-1].tolist() == tokens
    assert whole.apart(got, length) <= LIMIT


def test_drafts_follow_the_tokens_that_are_chosen(whole: Whole) -> None:
    # the bias of a place is that of the token chosen before it, which need not be the likeliest
    drafting = open_drafting(whole.model, 1, CONTEXT)
    second = drafting.draft(whole.features[None, :69], [TOKENS[1:70]], lambda _, logits: logits.topk(2).indices[:, 1])
    assert whole.apart(second, 70) <= LIMIT


def test_a_block_leaves_no_trace(whole: Whole) -> None:
    drafting = open_drafting(whole.model, 1, CONTEXT)
    for length in (40, 41, 44, 139, 150):
        read = drafting.cache.lengths[0]
        part = whole.features[None, read : length - 1]
        got = drafting.draft(part, [TOKENS[read + 1 : length]], greedy)
        assert whole.apart(got, length) <= LIMIT
    drafting.cache.free(0)
    assert whole.apart(drafting.draft(whole.features[None, :9], [TOKENS[1:10]], greedy), 10) <= LIMIT


# Planted defects.


class LateMarkov(Operators):
    """The Markov bias of each place is that of the token before the one before."""

    def __init__(self, markov_w1: Tensor) -> None:
        self.markov_w1, self.before = markov_w1, torch.zeros(1, dtype=torch.int64)

    def embedding(self, tokens: Tensor, table: Tensor, first: int) -> Tensor:  # type: ignore[override]
        if table is self.markov_w1:
            tokens, self.before = self.before, tokens
        return Operators.embedding(tokens, table, first)


def with_stages(model: Model, **changes: Any) -> Model:
    assert model.dspark is not None
    return replace(model, dspark=replace(model.dspark, **changes))


def test_planted_block_roped_one_position_early(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    run = DsparkStages.run

    def early(self: DsparkStages, *arguments: Any) -> Tensor:
        *others, rope, groups = arguments
        return run(self, *others, RopeTable(rope.cos.roll(1, 0), rope.sin.roll(1, 0)), groups)

    monkeypatch.setattr(DsparkStages, "run", early)
    assert whole.worst(whole.model, whole.features, 70) > 10 * LIMIT


def test_planted_drafts_that_see_a_rejected_row(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    # two rows behind the newest token were verified and rejected, and yet read
    drafting = open_drafting(whole.model, 1, CONTEXT)
    drafting.read(slice(0, 1), whole.features[None, :139], [TOKENS[1:140]])
    drafting.read(slice(0, 1), whole.features[None, 7:9], [TOKENS[8:10]])
    drafting.cache.lengths[0] = 139
    exact = DsparkStages._visible
    monkeypatch.setattr(DsparkStages, "_visible", lambda self, starts, ring: exact(self, starts + 1, ring))
    assert whole.apart(drafting.draft(whole.features[None, 139:140], [TOKENS[140:141]], greedy), 141) > 10 * LIMIT


def test_planted_markov_bias_of_the_wrong_token(whole: Whole) -> None:
    assert whole.model.dspark is not None
    late = replace(whole.model, ops=LateMarkov(whole.model.dspark.head.markov_w1))
    assert whole.worst(late, whole.features, 70) > 10 * LIMIT


def test_planted_ring_of_127(whole: Whole) -> None:
    short = with_stages(whole.model, window=WINDOW - 1)
    assert whole.worst(short, whole.features, 70) <= LIMIT  # not full: the same
    assert whole.worst(short, whole.features, 150) > 10 * LIMIT


def test_planted_features_of_another_layer_and_in_another_order(whole: Whole) -> None:
    other = features_of(with_stages(whole.model, targets=(0, 2, 3)), TOKENS)
    assert whole.worst(whole.model, other, 70) > 10 * LIMIT
    turned = torch.cat(whole.features.chunk(3, -1)[::-1], -1)
    assert whole.worst(whole.model, turned, 70) > 10 * LIMIT


@pytest.mark.parametrize(("what", "length"), [("old keys", 150), ("later keys", 70)])
def test_planted_clipping_for_each_query(whole: Whole, monkeypatch: pytest.MonkeyPatch, what: str, length: int) -> None:
    def clipped(self: DsparkStages, starts: Tensor, ring: int) -> Tensor:
        visible = see_all(self, starts, ring).clone()
        for query in range(self.size):
            for key in range(self.window if what == "old keys" else 0):  # the oldest first
                if self.window - key + query >= self.window:
                    visible[:, query, key] = -1
            if what == "later keys":
                visible[:, query, self.window + query + 1 :] = -1
        return visible

    see_all = DsparkStages._visible
    monkeypatch.setattr(DsparkStages, "_visible", clipped)
    assert whole.worst(whole.model, whole.features, length) > 10 * LIMIT


def test_planted_confidence_of_the_normed_hidden_state(whole: Whole) -> None:
    assert whole.model.dspark is not None
    head = whole.model.dspark.head

    class Normed(Operators):
        @staticmethod
        def linear(x: Tensor, weight: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
            if weight is head.confidence:
                width = whole.model.config.hidden_size
                x = torch.cat((Operators.rms_norm(x[..., :width], head.final.norm, 1e-6), x[..., width:]), -1)
            return Operators.linear(x, weight, out_dtype, out)

    assert whole.worst(replace(whole.model, ops=Normed()), whole.features, 70) > 10 * LIMIT


# Ranks.


def drafts_of(jobs: list[tuple[Path, NumericsName, torch.dtype]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Logits and confidences of three drafts, in the middle of a prompt and behind the window, alone and in a batch."""
    results = []
    for release, numerics, dtype in jobs:
        model = engine.load(release, numerics, dtype, mtp=True)
        features = features_of(model, TOKENS)
        got = [drafted(model, features, *how) for how in ((30, (), 1), (150, (100,), 1), (140, (), 2))]
        results.append(([each.logits[-1] for each in got], [each.confidence[-1] for each in got]))  # type: ignore[index]
    return results


def test_two_ranks_draft_what_one_does(dspark: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, alone = dspark
    kinds: list[tuple[NumericsName, torch.dtype]] = [("bf16", torch.float32), ("native", torch.bfloat16)]
    cut, native = (write_mp(checkpoint, tmp_path / form, form, 2) for form in ("bf16", "native"))  # type: ignore[arg-type]
    got = on_ranks(2, drafts_of, [(cut, *kinds[0]), (alone, *kinds[0]), (native, *kinds[1])])
    expected = drafts_of([(alone, *kinds[0]), (alone, *kinds[0]), (alone, *kinds[1])])
    for (logits, confidence), (others, other_confidence) in zip(got, expected, strict=True):
        for a, b in zip((*logits, *confidence), (*others, *other_confidence), strict=True):
            assert (a - b).abs().max() <= LIMIT


# Refusals.


def test_what_does_not_go_with_the_stages_is_refused(dspark: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    model = engine.load(dspark[1], "bf16", torch.float32)
    with pytest.raises(UsageError, match="without its MTP stage"):
        open_drafting(model, 1, CONTEXT)
    both = engine.load(dspark[1], "bf16", torch.float32, mtp=True)
    with pytest.raises(UsageError, match="are DSpark's"):
        both.new_draft_cache(1, CONTEXT)
    with pytest.raises(UsageError, match="no tokens"):
        open_drafting(both, 1, CONTEXT).draft(features_of(both, TOKENS)[None], [[]], greedy)
    wrong = small_config(**STAGES | {"dspark_target_layer_ids": [1, 2, 9]})
    with pytest.raises(UsageError, match=r"dspark_target_layer_ids \[1, 2, 9\]"):
        engine.load(Checkpoint(wrong).write_hf(tmp_path / "ids", "bf16"), "bf16", mtp=True)
    # An empty block and a noise token that is none ended the first step, behind loading, with a traceback.
    wrong = small_config(**STAGES | {"dspark_block_size": 0})
    with pytest.raises(UsageError, match="dspark_block_size is 0: a block has at least its first token"):
        engine.load(Checkpoint(wrong).write_hf(tmp_path / "size", "bf16"), "bf16", mtp=True)
    wrong = small_config(**STAGES | {"dspark_noise_token_id": 99999})
    with pytest.raises(UsageError, match="dspark_noise_token_id is 99999: the vocabulary has"):
        engine.load(Checkpoint(wrong).write_hf(tmp_path / "noise", "bf16"), "bf16", mtp=True)
    wrong = small_config(**STAGES | {"compress_ratios": [0, 4, 128, 0, 0, 4, 0]})
    with pytest.raises(UsageError, match=r"compress_ratios of the DSpark stages are \[0, 4, 0\]"):
        engine.load(Checkpoint(wrong).write_hf(tmp_path / "ratios", "bf16"), "bf16", mtp=True)

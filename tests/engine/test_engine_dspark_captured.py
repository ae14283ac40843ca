"""DSpark by static steps: a step of six tokens a row and the draft of a block are what the plain passes give.

A CPU records nothing; `record_like_a_graph` runs the work as a device does that records it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dspark_small import CONTEXT, TOKENS, features_of, greedy
from engine_checkpoint import Checkpoint, random_tokens
from live_numbers import live
from test_engine_decode_pairs import record_like_a_graph
from test_engine_dspark import LateMarkov, drafted
from torch import Tensor

from flagrelease import engine
from flagrelease.engine.decode.block_drafter import BlockDrafter
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.drafting import open_drafting
from flagrelease.engine.v4.dspark_head import Drafts
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.network import Network
from flagrelease.engine.v4.step import plan_step

LIMIT = 1e-3  # float32; a different order of additions only
BLOCK, WIDTH = 5, 6


@pytest.fixture(scope="module")
def model(dspark: tuple[Checkpoint, Path]) -> Model:
    return engine.load(dspark[1], "bf16", torch.float32, mtp=True)


@pytest.fixture(scope="module")
def features(model: Model) -> Tensor:
    return features_of(model, TOKENS)


def open_drafter(model: Model, rows: int, context: int = CONTEXT) -> tuple[BlockDrafter, Any]:
    drafting = open_drafting(model, rows, context)
    assert model.dspark is not None
    kept = torch.zeros(WIDTH, rows, *model.features, dtype=model.numerics.dtype, device=model.head.device)
    return BlockDrafter(model, model.dspark, drafting.cache, kept, BLOCK), drafting


def guess(
    model: Model, features: Tensor, lengths: Sequence[int], counts: Sequence[int], *, likeliest: bool = True
) -> Drafts:
    """Drafts behind TOKENS[:length] in each row, the last `count` positions of which are read with them."""
    drafter, drafting = open_drafter(model, len(lengths))
    read_before(drafting, features, lengths, counts)
    return guess_with(drafter, features, lengths, counts, likeliest=likeliest)


def read_before(drafting: Any, features: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> None:
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        begun = length - 1 - count
        if count and begun:
            drafting.read(slice(row, row + 1), features[None, :begun], [TOKENS[1 : begun + 1]])


def guess_with(
    drafter: BlockDrafter, features: Tensor, lengths: Sequence[int], counts: Sequence[int], *, likeliest: bool = True
) -> Drafts:
    following = [TOKENS[length - count : length] for length, count in zip(lengths, counts, strict=True)]
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        drafter._features[:count, row] = features[length - 1 - count : length - 1]
    return drafter.guess(following, None if likeliest else greedy)


def worst(model: Model, features: Tensor, got: Drafts, lengths: Sequence[int], counts: Sequence[int]) -> float:
    """The largest difference of a logit or confidence from the plain draft's; infinite where a token differs."""
    found = 0.0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if count:
            plain = drafted(model, features, length)
            if got.tokens[row].tolist() != plain.tokens[-1].tolist():
                return float("inf")
            assert got.confidence is not None
            assert plain.confidence is not None
            pairs = [(got.logits[row], plain.logits[-1]), (got.confidence[row], plain.confidence[-1])]
            found = max([found, *(float((a - b).abs().max()) for a, b in pairs)])
    return found


# Rows at different places: the beginning, borders of the window and of the ring of 133, more than a ring; and none.
PLACES = [
    ((2, 6, 60, 7), (1, 5, 2, 6)),
    ((127, 128, 129, 130), (1, 6, 3, 4)),
    ((133, 134, 135, 139), (6, 1, 5, 2)),
    ((150, 2, 145, 3), (4, 0, 0, 2)),
]


@pytest.mark.parametrize("likeliest", [True, False], ids=["in one recording", "chosen between recordings"])
@pytest.mark.parametrize(("lengths", "counts"), PLACES)
def test_drafts_are_the_plain_ones(
    model: Model, features: Tensor, lengths: Any, counts: Any, likeliest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_like_a_graph(monkeypatch)
    got = guess(model, features, lengths, counts, likeliest=likeliest)
    assert worst(model, features, got, lengths, counts) <= LIMIT


def test_a_block_leaves_no_trace(model: Model, features: Tensor) -> None:
    """Its keys lie in the rings behind all that is visible, and are overwritten by what was accepted."""
    drafter, drafting = open_drafter(model, 1)
    read_before(drafting, features, [120], [1])
    last = 119
    for length in (120, 121, 124, 130, 131, 136, 142, 145):
        count = length - last
        got = guess_with(drafter, features, [length], [count])
        assert worst(model, features, got, [length], [count]) <= LIMIT
        last = length


# Planted defects, which the comparison above sees.


def test_planted_block_roped_one_position_early(model: Model, features: Tensor, monkeypatch: Any) -> None:
    exact = DecodeStep.at

    def early(tokens: Tensor, positions: Tensor, *rest: Any) -> DecodeStep:
        return exact(tokens, positions - 1, *rest)

    monkeypatch.setattr(DecodeStep, "at", early)
    assert worst(model, features, guess(model, features, (70,), (2,)), (70,), (2,)) > 10 * LIMIT


def test_planted_drafts_that_see_a_rejected_row(model: Model, features: Tensor) -> None:
    """Two positions of the step were rejected, and are read all the same: the block goes behind them."""
    drafter, drafting = open_drafter(model, 1)
    read_before(drafting, features, [70], [2])
    drafter._features[:2, 0] = features[67:69]
    drafter._features[2:4, 0] = features[7:9]
    drafter.guess([TOKENS[68:72]], None)
    drafting.cache.lengths[0] = 69
    drafter._features[:1, 0] = features[69]
    exact = drafter._read
    drafter._read = lambda rows: None  # type: ignore[method-assign]  # the true one does not come in its place
    assert worst(model, features, drafter.guess([TOKENS[70:71]], None), (71,), (1,)) > 10 * LIMIT
    drafting.cache.lengths[0] = 69
    drafter._read = exact  # type: ignore[method-assign]
    assert worst(model, features, drafter.guess([TOKENS[70:71]], None), (71,), (1,)) <= LIMIT


def test_planted_markov_bias_of_the_wrong_token(model: Model, features: Tensor) -> None:
    assert model.dspark is not None
    late = replace(model, ops=LateMarkov(model.dspark.head.markov_w1))
    assert worst(model, features, guess(late, features, (70,), (2,)), (70,), (2,)) > 10 * LIMIT


def test_planted_ring_of_128_is_seen_and_refused(model: Model, features: Tensor) -> None:
    drafter, drafting = open_drafter(model, 1)
    ratios = (0,) * len(drafting.cache.layers)
    short = Cache.allocate(model.config, ratios, 1, CONTEXT, 1, model.numerics, model.head.device)
    assert short.layers[0].kv.shape[1] - 1 == 128
    assert model.dspark is not None
    with pytest.raises(AssertionError, match="overwrite those that it sees"):
        BlockDrafter(model, model.dspark, short, drafter._features, BLOCK)
    drafter._cache = drafting.cache = short
    read_before(drafting, features, (140,), (2,))
    assert worst(model, features, guess_with(drafter, features, (140,), (2,)), (140,), (2,)) > 10 * LIMIT


# Steps of several tokens a row, of which some are taken back.

STARTS = (120, 1, 62, 125)
# Right drafts of each row in each step; None: the row gets no token. Of five drafts the others are taken back.
RIGHT: list[tuple[int | None, ...]] = [
    (0, 0, 0, 0), (1, 5, 0, 2), (0, None, 3, 0), (4, 2, 1, 5), (0, 3, None, 1), (2, 0, 5, 0), (5, 4, 0, 3),
    (None, 1, 2, None), (3, 0, 4, 0),
]  # fmt: skip


def verify(model: Model) -> tuple[float, float, float]:
    """The largest differences of logits, of features and of what rows remember, from plain steps without drafts."""
    rows, vocabulary = len(STARTS), model.config.vocab_size
    plain, static = (model.new_cache(rows, 300) for _ in range(2))
    decoder = Decoder(model, static, WIDTH)
    known = [random_tokens(n + 40, seed=n, vocabulary=vocabulary) for n in STARTS]
    for cache in (plain, static):
        model.extend(cache, [tokens[:n] for tokens, n in zip(known, STARTS, strict=True)])
    places, found = list(STARTS), [0.0, 0.0, 0.0]
    for rights in RIGHT:
        true = [
            [] if right is None else tokens[place : place + right + 1]
            for tokens, place, right in zip(known, places, rights, strict=True)
        ]
        given = [each and [*each, *((token + 7) % vocabulary for token in range(WIDTH - len(each)))] for each in true]
        logits = decoder.advance(given)
        streams, features = model.advance_watched(plain, true)
        expected = model.read_out(streams)
        for row, (right, each) in enumerate(zip(rights, true, strict=True)):
            if right is None:
                continue
            count = len(each)
            static.take_back(row, WIDTH - count)
            places[row] += count
            found[0] = max(found[0], float((logits[row, :count] - expected[row, :count]).abs().max()))
            found[1] = max(found[1], float((decoder.features[:count, row] - features[row, :count]).abs().max()))
        assert plain.lengths == static.lengths
        for row in range(rows):
            pairs = zip(live(static, row, model), live(plain, row, model), strict=True)
            found[2] = max([found[2], *(float((a - b).abs().max()) for a, b in pairs if a.numel())])
    return found[0], found[1], found[2]


def test_verified_blocks_give_the_plain_logits_and_leave_nothing_behind(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_like_a_graph(monkeypatch)
    assert max(verify(model)) <= LIMIT


def test_compressors_without_spare_slots_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "most_drafts", 1)
    with pytest.raises(AssertionError, match="a compressor needs spare slots"):
        verify(model)


def test_planted_compressors_without_spare_slots_are_seen(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded, a step runs more than once, and its last tokens take slots that its first ones pool."""
    record_like_a_graph(monkeypatch)
    allocate = Cache.allocate

    def tight(*arguments: Any) -> Cache:
        *others, drafts = arguments
        return replace(allocate(*others, 0), drafts=drafts)

    monkeypatch.setattr(Cache, "allocate", tight)
    monkeypatch.setattr(Model, "_plan", plan_without_spare_slots)
    assert verify(model)[0] > 10 * LIMIT


def plan_without_spare_slots(model: Model, cache: Cache, token_ids: Any) -> Any:
    place = model.head.device
    return plan_step(model.config, token_ids, cache.lengths, cache.context, cache.chunk, place)


@pytest.mark.gpu
@pytest.mark.parametrize("operators", ["torch", "triton", "auto"])
def test_captured_on_the_device(dspark: tuple[Checkpoint, Path], operators: str) -> None:
    model = engine.load(dspark[1], "bf16", torch.float32, "auto", operators=operators, mtp=True)
    assert max(verify(model)) <= LIMIT
    features = features_of(model, TOKENS)
    for lengths, counts in PLACES:
        for likeliest in (True, False):
            got = guess(model, features, lengths, counts, likeliest=likeliest)
            assert worst(model, features, got, lengths, counts) <= LIMIT

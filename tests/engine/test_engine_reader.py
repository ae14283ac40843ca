"""Pieces of prompts in passes of fixed sizes give what the plain forward pass gives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from engine_checkpoint import random_tokens
from ranks import on_ranks
from small_tokenizer import write_tokenizer
from torch import Tensor

from flagrelease import engine
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.synthetic import random_model
from flagrelease.device import open_device
from flagrelease.engine.batch import reader as batch_reader
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_each
from flagrelease.engine.batch.sequence import Generated
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4 import reader as reader_module
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.reader import Reader
from flagrelease.engine.v4.step import Extent, Step, Windows, lay_out, plan_step
from flagrelease.errors import UsageError
from flagrelease.model.v4 import cache_size

ROWS, CONTEXT, CHUNK = 4, 400, 130
# The first row, and tokens of each: windows of 4 and of 128 open and closed, beginnings and ends at odd places.
PIECES: list[tuple[int, list[int]]] = [
    (1, [5]),
    (0, [64, 64]),
    (1, [70, 3, 125]),
    (0, [1]),
    (2, [128]),
    (0, [130]),
    (1, [33, 64]),
]


@pytest.fixture(scope="module")
def model(bf16_release: Path) -> Model:
    return engine.load(bf16_release, "bf16", torch.float32, mtp=True, chunk=CHUNK)


def pieces() -> list[tuple[int, list[list[int]]]]:
    return [(first, [random_tokens(n, seed=7 * n + row) for row, n in enumerate(counts)]) for first, counts in PIECES]


def remembered(cache: Cache) -> list[Tensor]:
    """All that later steps read: every buffer without its bin, which padding is written to."""
    found = []
    for layer in cache.layers:
        found.append(layer.kv[:, :-1])
        found += [] if layer.index_k is None else [layer.index_k[:, :-1]]
        pendings = [p for p in (layer.pending, layer.index_pending) if p is not None]
        found += [t[:, :-1].nan_to_num(neginf=0) for p in pendings for t in (p.kv, p.score)]
    return found


def distance(model: Model, reader: Reader, fixed: Cache) -> float:
    """How far the streams behind any token, and what any row remembers in the end, are from the plain pass's."""
    plain, furthest = model.new_cache(ROWS, CONTEXT), 0.0
    for first, tokens in pieces():
        part = plain.view(slice(first, first + len(tokens)))
        expected = model.advance(part, tokens)
        plain.lengths[first : first + len(tokens)] = part.lengths
        got, features = reader.read(first, tokens)
        assert features is got
        assert plain.lengths == fixed.lengths
        for row, count in enumerate(map(len, tokens)):
            furthest = max(furthest, float((got[row, :count] - expected[row, :count]).abs().max()))
    both = zip(remembered(fixed), remembered(plain), strict=True)
    return max(furthest, *(float((a - b).abs().max()) for a, b in both))


@pytest.mark.parametrize("reach", [16, 4096])
def test_pieces_equal_the_plain_pass(model: Model, monkeypatch: pytest.MonkeyPatch, reach: int) -> None:
    monkeypatch.setattr(reader_module, "SHORTEST_REACH", reach)
    fixed = model.new_cache(ROWS, CONTEXT)
    # All products have other numbers of rows than the plain pass's, and so another order of additions.
    assert distance(model, Reader(model, fixed, fixed=True), fixed) <= 1e-3


@pytest.mark.parametrize("what", ["padding is written to the ring", "the tokens of an open window are forgotten"])
def test_planted_in_the_numbers(model: Model, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def wrong(*args: object, **more: object) -> Step:
        step = lay_out(*args, **more)  # type: ignore[arg-type]
        if what.startswith("padding"):
            return replace(step, kv_slot={ratio: slot.clamp(min=0) for ratio, slot in step.kv_slot.items()})
        bins = {r: replace(w, pending_slot=torch.full_like(w.pending_slot, -1)) for r, w in step.windows.items()}
        return replace(step, windows=bins)

    monkeypatch.setattr(reader_module, "lay_out", wrong)
    fixed = model.new_cache(ROWS, CONTEXT)
    assert distance(model, Reader(model, fixed, fixed=True), fixed) > 1e-2


def listed(slots: Tensor) -> list[int]:
    """What a query attends to, in its order, without what stands for nothing."""
    return [slot for slot in slots.tolist() if slot >= 0]


def completed(windows: Windows, pending: int) -> list[tuple[int, int, list[int]]]:
    """Of each window that a row completes: where its entry goes, its position, and its tokens."""
    each = zip(windows.entry_slot[0].tolist(), windows.entry_position[0].tolist(), windows.source[0], strict=True)
    return [(slot, position, source.tolist()) for slot, position, source in each if slot >= 0]


@pytest.mark.parametrize(("start", "count"), [(0, 5), (0, 64), (3, 61), (125, 3), (127, 1), (130, 64), (250, 40)])
def test_the_numbers_are_the_plain_ones(model: Model, start: int, count: int) -> None:
    """Exactly, where they mean anything: whatever the pass has room for besides."""
    tokens, device = random_tokens(count), torch.device("cpu")
    plain = plan_step(model.config, [tokens], [start], CONTEXT, CHUNK, device)
    ids = torch.tensor([tokens + [0] * (64 - count)])
    numbers = [torch.tensor([n]) for n in (start, start + count, 2)]
    extent = Extent.covering(model.config, 64, 300, CONTEXT)
    fixed = lay_out(model.config, ids, *numbers, extent, CONTEXT, CHUNK, ragged=True)
    assert fixed.real is not None
    assert fixed.real.tolist() == [[n < count for n in range(64)]]
    assert torch.equal(fixed.positions[:, :count], plain.positions)
    assert fixed.cache_row.tolist() == [[2]]
    assert fixed.last.tolist() == [count - 1] == plain.last.tolist()
    for ratio, slot in plain.kv_slot.items():
        assert fixed.kv_slot[ratio].tolist() == [[*slot[0].tolist(), *[-1] * (64 - count)]]
        for n in range(64):
            expected = listed(plain.visible_slots[ratio][0, n]) if n < count else []
            assert listed(fixed.visible_slots[ratio][0, n]) == expected
    for ratio, windows in plain.windows.items():
        got = fixed.windows[ratio]
        for name in ("visible", "pending_slot"):
            assert torch.equal(getattr(got, name)[:, :count], getattr(windows, name)), name
        assert set(got.visible[0, count:].tolist()) <= {0}
        assert set(got.pending_slot[0, count:].tolist()) <= {-1}
        assert completed(got, ratio) == completed(windows, ratio)


def test_no_expert_reads_padding(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Tensor] = []
    exact = model.ops.moe_experts

    def moe_experts(x: Tensor, ids: Tensor, *rest: object) -> Tensor:
        read.append((ids >= 0).any(-1))
        return exact(x, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.ops), "moe_experts", staticmethod(moe_experts))
    Reader(model, model.new_cache(ROWS, CONTEXT), fixed=True).read(1, [random_tokens(7), random_tokens(3)])
    assert len(read) == model.config.num_hidden_layers
    assert {tuple(each.nonzero().flatten().tolist()) for each in read} == {(*range(7), *range(64, 67))}


def test_sizes(model: Model) -> None:
    reader = Reader(model, model.new_cache(3, CONTEXT), fixed=True)
    assert reader._size([0], [[1] * 64]) == (1, 64, CONTEXT)
    assert reader._size([0, 0, 0], [[1], [1], [1] * 65]) == (4, 128, CONTEXT)
    assert Reader(model, model.new_cache(1, CONTEXT), fixed=False)._size([0], [[1]]) is None
    long = replace(model, chunk=4096, config=model.config.model_copy(update={"max_position_embeddings": 9000}))
    reader = Reader(long, long.new_cache(2, 9000), fixed=True)
    assert reader._size([4000], [[1] * 96]) == (1, 128, 4096)
    assert reader._size([4000], [[1] * 97]) == (1, 128, 8192)
    assert reader._size([0], [[1] * 1024]) == (1, 1024, 4096)
    assert reader._size([0], [[1] * 1025]) is None
    assert reader._size([0, 8000], [[1] * 513, [1]]) is None


def test_refusals_and_lengths(model: Model) -> None:
    cache = model.new_cache(2, 10)
    reader = Reader(model, cache, fixed=True)
    for tokens, message in (([[100000]], "vocabulary"), ([[]], "no tokens"), ([[1] * 8, [1] * 11], "context of 10")):
        with pytest.raises(UsageError, match=message):
            reader.read(0, tokens)
    assert cache.lengths == [0, 0]
    reader.read(1, [[1] * 10])
    assert cache.lengths == [0, 10]


@pytest.mark.parametrize("speculate", [False, True])
def test_texts_are_those_of_plain_passes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, speculate: bool
) -> None:
    """Prompts that share a beginning, that are read together, and whose scores are asked for."""
    write_tokenizer(tmp_path)
    beginning = random_tokens(CHUNK + 3, vocabulary=263)
    requests = [
        (random_tokens(n, seed=n, vocabulary=263), Sampling(temperature=1.0, seed=n, max_tokens=8, logprobs=1))
        for n in (5, 61, 70, 9)
    ]
    requests += [([*beginning, n], Sampling(temperature=0, max_tokens=5)) for n in range(4)]
    requests += [(beginning, Sampling(temperature=0, max_tokens=2, prompt_logprobs=1))]

    def answers(*, fixed: bool) -> tuple[list[Generated], int]:
        monkeypatch.setattr(batch_reader, "passes_are_captured", lambda _: fixed)
        scheduler = Scheduler(Runner(model, 3, CONTEXT, speculate=speculate), Tokenizer(tmp_path))
        return [each for _, each in sorted(generate_each(scheduler, requests))], scheduler.totals.cached

    expected, kept = answers(fixed=False)
    got, kept_here = answers(fixed=True)
    assert kept_here == kept > 0
    for one, other in zip(got, expected, strict=True):
        assert (one.text, one.generated, one.finish, one.accepted) == (
            other.text, other.generated, other.finish, other.accepted,
        )  # fmt: skip
        assert [score.token for score in one.scores] == [score.token for score in other.scores]
        both = zip(one.scores, other.scores, strict=True)
        assert all(abs((a.logprob or 0) - (b.logprob or 0)) <= 1e-3 for a, b in both)


@torch.inference_mode()
def test_caches_of_codes_give_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(dimensions("tiny", 4), "native", "torch", open_device("cpu"), 64)

    def streams() -> list[Tensor]:
        cache = model.new_cache(2, 200)
        reader = Reader(model, cache, fixed=True)
        read = [reader.read(1, [random_tokens(n, seed=n)])[0].clone() for n in (60, 7, 64)]
        return [*read, *(torch.tensor([layer.kv.dtype == torch.uint8]) for layer in cache.layers)]

    *plain, _, first, _, _ = streams()
    monkeypatch.setattr(cache_size, "CODED_FROM", 1)
    *coded, _, second, _, _ = streams()
    assert (bool(first), bool(second)) == (False, True)
    assert all(torch.equal(a, b) for a, b in zip(coded, plain, strict=True))


def logits_after_pieces(release: Path, *, fixed: bool) -> Tensor:
    """After each piece's tokens, one piece below the other."""
    model = engine.load(release, "bf16", torch.float32, chunk=CHUNK)
    reader, found = Reader(model, model.new_cache(ROWS, CONTEXT), fixed=fixed), []
    for first, tokens in pieces():
        streams, _ = reader.read(first, tokens)
        found += [model.read_out(streams[row, : len(each)]) for row, each in enumerate(tokens)]
    return torch.cat(found)


def test_two_ranks_read_what_one_does(bf16_release: Path) -> None:
    expected = logits_after_pieces(bf16_release, fixed=False)
    got: Tensor = on_ranks(2, partial(logits_after_pieces, fixed=True), bf16_release)
    assert (got - expected).abs().max() <= 1e-3

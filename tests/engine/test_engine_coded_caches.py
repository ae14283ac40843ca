"""Caches that keep keys as codes change no number: the same logits as with BF16 caches, to the bit, wherever rows go.

Contexts that get codes by themselves are too long for a test (`CODED_FROM`); here all of them do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.synthetic import random_model
from flagrelease.device import open_device
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.kernels.reference import key_rows
from flagrelease.engine.v4.model import Model
from flagrelease.model.v4 import cache_size

NUMERICS = ["native", "fp8"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(numerics: str, layers: int = 2) -> Model:
    return random_model(dimensions("tiny", layers), numerics, "torch", open_device("cpu"), 32)


def prompt(count: int, seed: int) -> list[int]:
    tokens: list[int] = torch.randint(512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return tokens


@torch.inference_mode()
def lives_of_rows(model: Model) -> tuple[list[Tensor], int]:
    """Logits of rows that are read in chunks, decoded, taken back, saved, loaded elsewhere and freed; bytes a row."""
    cache = model.new_cache(rows=3, context=110)
    logits = [model.extend(cache, [prompt(70, 1), prompt(33, 2), prompt(5, 3)])]
    logits += [model.decode(cache, [token, 2 * token, None if token == 3 else 7]) for token in range(5)]
    saved = cache.save(0)
    cache.load(2, saved)
    logits.append(model.decode(cache, [None, 5, 11]))
    cache.free(1)
    logits.append(model.extend(cache, [[1, 2, 3], prompt(40, 4), []]))
    decoder = Decoder(model, cache)
    decoder.tokens[:3], decoder.positions[:3] = torch.tensor([3, 4, 5]), torch.tensor(cache.lengths)
    for _ in range(6):
        decoder.step(3, max(cache.lengths) + 6)
        logits.append(decoder._logits.clone())
    return logits, cache.saved_bytes(100)


@pytest.mark.parametrize("numerics", NUMERICS)
def test_logits_are_those_of_bf16_caches(numerics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, plain_bytes = lives_of_rows(small(numerics))
    monkeypatch.setattr(cache_size, "CODED_FROM", 1)
    coded, coded_bytes = lives_of_rows(small(numerics))
    assert all(torch.equal(a, b) for a, b in zip(coded, plain, strict=True))
    assert coded_bytes < plain_bytes


def test_which_layers_have_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_size, "CODED_FROM", 1)
    layers = small("native", 4).new_cache(rows=1, context=64).layers
    assert [layer.kv.dtype for layer in layers] == [torch.bfloat16, torch.uint8, torch.bfloat16, torch.uint8]
    assert [layer.kv.shape[-1] for layer in layers] == [128, 208, 128, 208]
    assert [None if layer.index_k is None else layer.index_k.shape[-1] for layer in layers] == [None, 80, None, 80]


def test_a_wrong_scale_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = lives_of_rows(small("native"))
    monkeypatch.setattr(cache_size, "CODED_FROM", 1)
    powers = key_rows._powers
    monkeypatch.setattr(key_rows, "_powers", lambda exponents: powers(exponents | 1))
    harmed, _ = lives_of_rows(small("native"))
    assert not all(torch.equal(a, b) for a, b in zip(harmed, plain, strict=True))

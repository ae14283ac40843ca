"""DeepSeek-V4.1's pass against a slow transcription of the formulas, which was written before it.

Without rounding whole logits are compared. With it a sum that falls on two sides of a rounding boundary changes what
comes after, so each layer is given the same input in both, and must give exactly the same BF16 numbers for most of
them: a wrong format, group or place of rounding changes nearly all.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from native_transcription import E2M1
from torch import Tensor
from v41_checkpoint import IMAGE, ROWS, native_tensors, small_config
from v41_transcription import Transcription41, compressed_key

from flagrelease import engine
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v41.attention import SharedAttention
from flagrelease.engine.v41.model import V41Model
from flagrelease.engine.v41.step import plan_step

# Words of one spelling and of several, an image between them, and enough tokens for every list to be cut.
# An image among words of one spelling and of several, and enough tokens that every list of entries is cut.
TOKENS = [5, 17, 300, 44, 12, 90, 260, 33, 2, IMAGE, IMAGE, 17, 300, 44, 12]
TOKENS += [int(n) for n in np.random.default_rng(4).integers(0, ROWS, 33)]
SAME = 0.85  # share of numbers that are exactly the same; measured 0.98 to 1, with the defects below at most 0.11
LAYERS = {0: "window", 1: "window, Engram", 2: "pairs", 3: "pairs of layer 2", 4: "pairs, Engram", 5: "tokens, blocks",
          6: "tokens of layer 5", 7: "tokens of layer 5, in blocks"}  # fmt: skip


def decoded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every weight in float64: a scale for each block of 32 x 32, or for 32 columns of a row."""
    values = {}
    for name, stored in tensors.items():
        scale = tensors.get(name.removesuffix("weight") + "scale") if name.endswith(".weight") else None
        if name.endswith(".scale"):
            continue
        if scale is None:
            values[name] = stored.double()
            continue
        if stored.dtype == torch.int8:
            raw = stored.view(torch.uint8).numpy()
            codes = np.stack((raw & 15, raw >> 4), -1).reshape(len(raw), -1)
            plain = np.where(codes & 8, -1, 1) * E2M1[codes & 7]
        else:
            plain = stored.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        powers = np.exp2(scale.view(torch.uint8).numpy().astype(np.float64) - 127)
        tall = -(-len(plain) // len(powers))
        spread = np.repeat(np.repeat(powers, tall, 0)[: len(plain)], 32, 1)[:, : plain.shape[1]]
        values[name] = torch.from_numpy(plain * spread)
    return values


@pytest.fixture(scope="module")
def values() -> dict[str, Tensor]:
    return decoded(native_tensors(small_config()))


@pytest.fixture(scope="module")
def words(v41_release: Path) -> list[int]:
    tokenizer = Tokenizer(v41_release)._tokenizer
    numbers: dict[str, int] = {}
    keys = (
        compressed_key(tokenizer.decode([n], skip_special_tokens=False), tokenizer.id_to_token(n)) for n in range(512)
    )
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def transcription(values: dict[str, Tensor], words: list[int], **how: Any) -> Transcription41:
    config = small_config()
    flat = config["text_config"] | {name: value for name, value in config.items() if name != "text_config"}
    bound = (2**63 - 1) // flat["engram_compressed_vocab_size"] // 2
    multipliers = {
        layer: [int(2 * v + 1) for v in np.random.default_rng(10007 * layer).integers(0, bound, 4)]
        for layer in flat["engram_layer_ids"]
    }
    return Transcription41(flat, values, words, multipliers, **how)


@pytest.fixture(scope="module")
def expected(values: dict[str, Tensor], words: list[int]) -> Any:
    oracle = transcription(values, words, native=False)
    return np.array([oracle.read(token) for token in TOKENS])


@pytest.fixture(scope="module")
def plain(v41_release: Path) -> V41Model:
    """Nothing is rounded: what remains of a difference is the order of additions."""
    model = engine.load(v41_release, "bf16", torch.float32)
    assert isinstance(model, V41Model)
    return model


def apart(got: Tensor, expected: Any) -> float:
    return float(np.abs(got.double().numpy() - expected).max())


def test_logits_are_those_of_the_transcription(plain: V41Model, expected: Any) -> None:
    assert apart(plain.logits(TOKENS), expected) < 2e-4


def test_decoding_and_chunks_are_too(plain: V41Model, expected: Any) -> None:
    """One token at a time; and odd chunks, so that pairs of tokens and n-grams are cut everywhere."""
    cache = plain.new_cache(1, len(TOKENS))
    assert apart(torch.stack([plain.decode(cache, [token])[0] for token in TOKENS]), expected) < 2e-4
    assert apart(replace(plain, chunk=7).logits(TOKENS), expected) < 2e-4


def test_rows_of_different_lengths_are_read_side_by_side(plain: V41Model, expected: Any) -> None:
    cache = plain.new_cache(3, len(TOKENS))
    plain.extend(cache, [TOKENS[:9], [], TOKENS[:20]])
    after = plain.extend(cache, [TOKENS[9:40], TOKENS[:1], TOKENS[20:23]])
    assert apart(after, expected[[39, 0, 22]]) < 2e-4
    after = plain.decode(cache, [TOKENS[40], TOKENS[1], None])
    assert apart(after[:2], expected[[40, 1]]) < 2e-4


def test_a_row_is_copied_to_another_and_goes_on_there(plain: V41Model, expected: Any) -> None:
    cache, other = plain.new_cache(1, len(TOKENS)), plain.new_cache(2, len(TOKENS))
    plain.prefill(cache, 0, TOKENS[:31])
    saved = cache.save(0)
    assert saved.length == 31
    assert sum(part.numel() * part.element_size() for part in saved.parts) == cache.saved_bytes(31)
    plain.prefill(cache, 0, [7, 7, 7])  # what is written later is in no copy
    other.load(1, saved)
    assert apart(plain.prefill(other, 1, TOKENS[31:]), expected[-1]) < 2e-4


def test_the_keys_that_deepseeks_decoding_finds_are_read_when_asked_for(
    plain: V41Model, values: dict[str, Tensor], words: list[int], expected: Any
) -> None:
    prompt = 20
    oracle = transcription(values, words, native=False, stale=True, prompt=prompt)
    found = np.array([oracle.read(token) for token in TOKENS])
    model = replace(plain, stale_index_keys=True)
    cache = model.new_cache(1, len(TOKENS))
    model.prefill(cache, 0, TOKENS[:prompt])
    after = torch.stack([model.decode(cache, [token])[0] for token in TOKENS[prompt:]])
    assert apart(after, found[prompt:]) < 2e-4
    assert apart(after, expected[prompt:]) > 0.1


class OwnPre(Operators):
    """Every sub-layer's input is weighed by the streams in front of it, as in V4."""

    def hc_delayed(self, *args: Any) -> Any:
        made = Operators.hc_delayed(*args)
        self.pre = made[0].view(1, -1, made[0].shape[-1])
        return made

    def hc_collapse(self, x: Tensor, pre: Tensor) -> Tensor:
        return Operators.hc_collapse(x, getattr(self, "pre", pre))


class HeadNorm(Operators):
    @staticmethod
    def shared_attention(q: Tensor, *args: Any) -> Tensor:
        return Operators.shared_attention(Operators.rms_norm(q, None, 1e-20), *args)


class NoBlocks(Operators):
    @staticmethod
    def topk_candidates(scores: Tensor, visible: Tensor, k: int, blocks: Tensor, size: int) -> Tensor:
        return Operators.topk_visible(scores, visible, k)


class NewestNotPinned(Operators):
    @staticmethod
    def candidate_blocks(scores: Tensor, visible: Tensor, size: int, k: int) -> Tensor:
        return Operators.candidate_blocks(scores, visible, size, k - 1)


class NoBiasOfImages(Operators):
    @staticmethod
    def route_modal(scores: Tensor, bias: Tensor, bias_vl: Tensor, image: Any, topk: int, scale: float) -> Any:
        return Operators.route_modal(scores, bias, bias_vl, None, topk, scale)


class ImagesAreRemembered(Operators):
    @staticmethod
    def engram_gate(*args: Any) -> Tensor:
        return Operators.engram_gate(*args[:-1], None)


class NoRootInGate(Operators):
    @staticmethod
    def engram_gate(x: Tensor, kv: Tensor, q: Tensor, k: Tensor, eps: float, text: Any) -> Tensor:
        return Operators.engram_gate(x, kv, q * 4, k, eps, text)


class MultipliersTurned(Operators):
    @staticmethod
    def ngram_rows(ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor) -> Tensor:
        return Operators.ngram_rows(ids, multipliers.flip(0), primes, offsets)


class PairsNotWeighed(Operators):
    @staticmethod
    def compress_windows(kv: Tensor, score: Tensor, *args: Any) -> Tensor:
        return Operators.compress_windows(kv, torch.zeros_like(score), *args)


@pytest.mark.parametrize(
    "operators",
    [OwnPre, HeadNorm, NoBlocks, NewestNotPinned, NoBiasOfImages, ImagesAreRemembered, NoRootInGate, MultipliersTurned,
     PairsNotWeighed],
)  # fmt: skip
def test_a_defect_in_the_mathematics_shows_in_the_logits(
    plain: V41Model, expected: Any, operators: type[Operators]
) -> None:
    assert apart(replace(plain, ops=operators()).logits(TOKENS), expected) > 0.01


# --- what native numerics round


@pytest.fixture(scope="module")
def layers(v41_release: Path, values: dict[str, Tensor], words: list[int]) -> tuple[V41Model, list[Any], list[Any]]:
    """The model; what goes into each layer; and what the transcription makes of it."""
    model = engine.load(v41_release)
    assert isinstance(model, V41Model)
    assert model.numerics.name == "native"
    oracle = transcription(values, words, native=True)
    oracle.tokens = TOKENS
    inputs: list[Any] = []
    run_layers(model, inputs)
    made = []
    for layer, (streams, pre, _) in enumerate(inputs):
        rows = [
            oracle.layer(layer, t, streams[0, t].double().numpy(), pre[0, t].double().numpy())
            for t in range(len(TOKENS))
        ]
        made.append(np.array([behind for behind, _ in rows]))
    chosen = {layer: [oracle.picks[layer, t] for t in range(len(TOKENS))] for layer in (2, 4, 5, 7)}
    return model, inputs, [made, chosen]


def run_layers(model: V41Model, inputs: list[Any], blocks: Any = None) -> tuple[list[Tensor], list[Any]]:
    """Each layer with what `inputs` has for it, which is filled if empty; the streams behind, and entries chosen."""
    cache = model.new_cache(rows=1, context=len(TOKENS))
    step = plan_step(model.config, [TOKENS], cache, model.head.device)
    streams = torch.stack([model.embed_tokens(step.tokens)] * 4, -2)
    handed, given, behind, chosen = model.begin(step, cache), list(inputs), [], []
    for block in blocks or model.blocks:
        if given:
            streams, handed.pre, handed.blocks = given[block.layer]
        else:
            inputs.append((streams, handed.pre, handed.blocks))
        streams = block.forward(model.ops, streams, step, cache.layers, model.rope(block.layer), handed, model.groups)
        behind.append(streams)
        chosen.append(handed.chosen)
    return behind, chosen


def same(got: Tensor, expected: Any) -> float:
    return float((got[0].double().numpy() == expected).mean())


def test_layers_are_bit_exact_but_for_rounding_ties(layers: Any) -> None:
    model, inputs, (made, chosen) = layers
    behind, found = run_layers(model, inputs)
    for layer, kind in LAYERS.items():
        assert same(behind[layer], made[layer]) > SAME, kind
    for layer, picks in chosen.items():
        lists = [[int(n) for n in row if n >= 0] for row in found[layer][0]]
        assert sum(one == other for one, other in zip(lists, picks, strict=True)) >= 0.9 * len(TOKENS), LAYERS[layer]


class InputsNotRounded(Operators):
    @staticmethod
    def act_quant_roundtrip(x: Tensor, block: int = 128, out: Tensor | None = None) -> Tensor:
        return x


class KeysInGroupsOf32(Operators):
    @staticmethod
    def fp4_keys_roundtrip(x: Tensor, out: Tensor | None = None) -> Tensor:
        return Operators.fp4_act_quant_roundtrip(x)


class EntriesNotRounded(Operators):
    @staticmethod
    def fp4_keys_roundtrip(x: Tensor, out: Tensor | None = None) -> Tensor:
        return x


class ExpertsNotRounded(Operators):
    @staticmethod
    def moe_experts_32(*args: Any) -> Tensor:
        return Operators.moe_experts_32(*args[:-1], False)


@pytest.mark.parametrize(
    ("operators", "layer"),
    [
        (InputsNotRounded, 0), (InputsNotRounded, 1), (KeysInGroupsOf32, 2), (KeysInGroupsOf32, 6),
        (EntriesNotRounded, 3), (ExpertsNotRounded, 0),
    ],
)  # fmt: skip
def test_a_defect_in_rounding_is_found_by_its_layer(layers: Any, operators: type[Operators], layer: int) -> None:
    model, inputs, (made, _) = layers
    behind, _ = run_layers(replace(model, ops=operators()), inputs)
    assert same(behind[layer], made[layer]) < 0.5


class KeysAsInV4(SharedAttention):
    """The rotated columns stay as they are."""

    def _keys(self, ops: Operators, kv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        kv = ops.rms_norm(kv, self.kv_norm, self.eps)
        self._rotate(ops, kv, cos, sin)
        still = kv[..., : -self.rope_dim]
        ops.act_quant_roundtrip(still, self.key_group, out=still)
        return kv


def test_a_window_key_is_rounded_in_all_its_columns(layers: Any) -> None:
    model, inputs, (made, _) = layers
    attention = model.blocks[0].attn
    as_in_v4 = KeysAsInV4(**{each.name: getattr(attention, each.name) for each in fields(attention)})
    behind, _ = run_layers(model, inputs, [replace(model.blocks[0], attn=as_in_v4)])
    assert same(behind[0], made[0]) < 0.5


def test_groups_have_32_columns(layers: Any) -> None:
    """Where a scale is a power of two, larger groups change only what falls below the least numbers of FP8."""
    asked = set()

    class Noting(Operators):
        @staticmethod
        def act_quant_roundtrip(x: Tensor, block: int = 128, out: Tensor | None = None) -> Tensor:
            asked.add(block)
            return Operators.act_quant_roundtrip(x, block, out)

    model, inputs, _ = layers
    run_layers(replace(model, ops=Noting()), inputs)
    assert asked == {32}

"""V4.1's torch definitions against the formulas, transcribed literally with loops over Python's numbers.

Roundings are those of `ml_dtypes`, which has its own conversions to E4M3 and E2M1.
"""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from kernel_cases import e4m3, e8m0, experts
from kernel_comparison import assert_same
from torch import Tensor
from v41_cases import keys, table, tiles

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.reference import v41
from flagrelease.engine.kernels.reference.quantisation import decode, dequantise
from flagrelease.engine.kernels.weights import ExpertWeights, spread_over_rows, weight_format
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.schemes import scheme_of

F64 = torch.float64


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_streams_are_collapsed_by_given_weights() -> None:
    x, pre = randn(2, 3, 4, 5), randn(2, 3, 4)
    expected = torch.zeros(2, 3, 5, dtype=F64)
    for b, s, j, h in itertools.product(range(2), range(3), range(4), range(5)):
        expected[b, s, h] += pre[b, s, j] * x[b, s, j, h]
    assert_same(v41.hc_collapse(x, pre), expected)


def test_delayed_weights_come_from_the_mean_square_of_all_streams() -> None:
    """Parts are added up first; Sinkhorn's 20 rounds end on the columns, whose sums are then one."""
    x, fn, scale, base = randn(2, 4, 6), randn(24, 24), torch.rand(3, dtype=F64), randn(24)
    pre, post, comb = v41.hc_delayed(x, *reference.hc_mixes(x, fn), scale, base, 20, 1e-6, 1e-20)
    halves = tuple(torch.cat((part * 0.25, part * 0.75)) for part in reference.hc_mixes(x, fn))
    assert_same(v41.hc_delayed(x, *halves, scale, base, 20, 1e-6, 1e-20), (pre, post, comb))
    for b in range(2):
        flat = [float(v) for v in x[b].flatten()]
        rms = math.sqrt(sum(v * v for v in flat) / 24 + 1e-20)
        mixes = [sum(float(fn[n, i]) * flat[i] for i in range(24)) / rms for n in range(24)]
        for j in range(4):
            assert float(pre[b, j]) == pytest.approx(sigmoid(mixes[j] * scale[0] + base[j]) + 1e-6, rel=1e-12)
            assert float(post[b, j]) == pytest.approx(2 * sigmoid(mixes[4 + j] * scale[1] + base[4 + j]), rel=1e-12)
        rows = [
            [mixes[8 + 4 * i + j] * float(scale[2]) + float(base[8 + 4 * i + j]) for j in range(4)] for i in range(4)
        ]
        matrix = [[math.exp(v) / sum(map(math.exp, row)) + 1e-6 for v in row] for row in rows]
        for turn in range(39):
            if turn % 2:
                matrix = [[v / (sum(row) + 1e-6) for v in row] for row in matrix]
            else:
                sums = [sum(row[j] for row in matrix) + 1e-6 for j in range(4)]
                matrix = [[v / sums[j] for j, v in enumerate(row)] for row in matrix]
        assert_same(comb[b], torch.tensor(matrix, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_are_fp4_under_e4m3_scales(dtype: torch.dtype) -> None:
    x = keys(40, 64, dtype=dtype)
    x[1, 16:32] = torch.tensor([6, 5, -5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25, -0.25, 0.5, 0, 1, 2, -3, -6]).to(dtype)
    groups = x.float().numpy().reshape(40, 4, 16)
    amax = np.maximum(np.abs(groups).max(-1, keepdims=True), np.float32(6 * 2**-9))
    scale = (amax / np.float32(6)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = np.clip(groups / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    expected = torch.from_numpy((codes * scale).reshape(40, 64)).to(dtype)
    assert torch.equal(v41.fp4_keys_roundtrip(x), expected)
    assert v41.fp4_keys_roundtrip(x)[1, 16:32].tolist() == [6, 4, -4, 4, 2, 2, 1, 1, 0, 0, 0.5, 0, 1, 2, -3, -6]
    assert v41.fp4_keys_roundtrip(x, out=x) is x
    assert torch.equal(x, expected)
    with pytest.raises(ValueError, match="do not divide"):
        v41.fp4_keys_roundtrip(x[:, :40])


def test_a_linear_has_a_scale_for_each_tile_of_32_by_32() -> None:
    x, (w, ws) = randn(2, 70), tiles(40, 70)
    values = w.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    scales = ws.view(torch.uint8).numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    expected = torch.zeros(2, 40, dtype=F64)
    for m, n, k in itertools.product(range(2), range(40), range(70)):
        expected[m, n] += float(x[m, k]) * values[n, k] * scales[n // 32, k // 32]
    assert_same(v41.fp8_linear_32(x, w, ws, F64), expected)
    for wrong in ((x[:, :64], w, ws), (x, w, ws[:1]), (x, w, ws.view(torch.uint8)), (x, w.float(), ws)):
        with pytest.raises(ValueError, match=r"columns|scales|float8"):
            v41.fp8_linear_32(*wrong, F64)


def test_tiles_of_32_by_32_are_told_apart_and_decoded() -> None:
    w, ws = tiles(40, 70)
    assert weight_format(w, ws) == "fp8-32"
    assert weight_format(e4m3(32, 32), e8m0(1, 1)) == "fp8"  # one scale for all, whatever the size of a block
    assert weight_format(e4m3(256, 256), e8m0(2, 2)) == "fp8"
    spread = ws.float().repeat_interleave(32, 0)[:40].repeat_interleave(32, 1)[:, :70]
    assert torch.equal(dequantise(w, ws), w.float() * spread)
    assert torch.equal(decode(w, ws, torch.bfloat16), (w.float() * spread).bfloat16())
    w, ws = tiles(40, 96)
    by_row = spread_over_rows(w, ws)
    assert weight_format(w, by_row) == "mxfp8"
    assert torch.equal(dequantise(w, by_row), dequantise(w, ws))
    tiled = e4m3(1, 64, 64), e8m0(1, 2, 2)
    with pytest.raises(ValueError, match="spread_over_rows"):
        ExpertWeights(tiled[0], tiled[0], tiled[0], tiled[1], tiled[1], tiled[1], 0)


def test_a_linear_of_tiles_rounds_its_input_in_groups_of_32() -> None:
    """Held in codes it gives what the decoded weight gives; half of the columns would drown under one scale for all."""
    (w, ws), x = tiles(64, 128), randn(3, 128).bfloat16()
    x[:, :32] *= 2**13
    w.view(torch.uint8)[:, :32] = 0
    scheme, ops = scheme_of("fp8-32", Numerics("native", torch.bfloat16, ("fp4", "fp8"), "every")), Operators()
    rounded = scheme.round(ops, x)
    assert rounded.codes is not None
    assert torch.equal(rounded.codes, reference.act_quant_roundtrip(x, 32))
    expected = reference.linear(rounded.codes, decode(w, ws, torch.bfloat16), torch.bfloat16)
    assert_same(scheme.product(ops, rounded, w, ws, torch.bfloat16), expected)
    assert_same(scheme.product(ops, rounded, w, ws, torch.bfloat16, torch.empty(3, 64).bfloat16()), expected)
    assert_same(scheme.parts(ops, rounded, w, ws).sum(0).bfloat16(), expected)


def test_attention_over_two_lists_is_one_softmax() -> None:
    q, window, entries, sink = randn(1, 2, 3, 8), randn(1, 5, 8), randn(1, 6, 8), randn(3)
    window_idx, entry_idx = torch.tensor([[[0, 4, -1], [-1, -1, -1]]]), torch.tensor([[[5, -1, 5, 2], [-1] * 4]])
    actual = v41.shared_attention(q, window, entries, sink, window_idx, entry_idx, 0.5)
    listed = [window[0, 0], window[0, 4], entries[0, 5], entries[0, 5], entries[0, 2]]
    for h in range(3):
        z = [0.5 * sum(float(q[0, 0, h, d] * key[d]) for d in range(8)) for key in listed]
        total = sum(map(math.exp, z)) + math.exp(float(sink[h]))
        expected = sum(math.exp(each) / total * key for each, key in zip(z, listed, strict=True))
        assert isinstance(expected, Tensor)
        assert_same(actual[0, 0, h], expected)
    assert not actual[0, 1].any()  # a query that sees nothing gets zeros, not NaN
    alone = v41.shared_attention(q, window, None, sink, window_idx, None, 0.5)
    assert_same(alone, reference.sparse_attention(q, window, sink, window_idx, 0.5))


def test_the_best_blocks_and_the_best_entries_of_blocks() -> None:
    """Scores on a grid, so that there are ties, which the lower block and the lower entry win."""
    scores = torch.randn(3, 4, 45).mul(2).round()
    visible = torch.tensor([[45, 0, 1, 4], [44, 30, 17, 9], [5, 40, 41, 12]])
    blocks = v41.candidate_blocks(scores, visible, 4, 5)
    best = v41.topk_candidates(scores, visible, 6, blocks, 4)
    assert (blocks.dtype, best.dtype, blocks.shape, best.shape) == (torch.int32,) * 2 + ((3, 4, 5), (3, 4, 6))
    for b, s in itertools.product(range(3), range(4)):
        seen = int(visible[b, s])
        values = [max(float(v) for v in scores[b, s, i : min(i + 4, seen)]) for i in range(0, seen, 4)]
        if values:
            values[(seen - 1) // 4] = math.inf
        wanted = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:5])
        assert blocks[b, s].tolist() == wanted + [-1] * (5 - len(wanted))
        inside = [n for n in range(seen) if n // 4 in wanted]
        entries = sorted(sorted(inside, key=lambda n: (-float(scores[b, s, n]), n))[:6])
        assert best[b, s].tolist() == entries + [-1] * (6 - len(entries))


def test_as_many_blocks_as_there_are_leave_the_choice_as_it_was() -> None:
    """Up to 16,384 entries the second level changes nothing (2,048 blocks of 8)."""
    scores, visible = torch.randn(2, 3, 60), torch.tensor([[60, 3, 0], [59, 8, 33]])
    blocks = v41.candidate_blocks(scores, visible, 8, 8)
    assert torch.equal(v41.topk_candidates(scores, visible, 12, blocks, 8), reference.topk_visible(scores, visible, 12))


def test_image_tokens_are_routed_by_their_own_bias() -> None:
    scores, bias, bias_vl = torch.rand(4, 7, dtype=F64), randn(7), randn(7)
    scores[3] = 0
    image = torch.tensor([False, True, False, True])
    ids, weights = v41.route_modal(scores, bias, bias_vl, image, 3, 1.5)
    assert not torch.equal(ids[1], v41.route_modal(scores, bias, bias_vl, None, 3, 1.5)[0][1])
    for t in range(4):
        added = bias_vl if image[t] else bias
        best = sorted(range(7), key=lambda e: -float(scores[t, e] + added[e]))[:3]
        total = sum(float(scores[t, e]) for e in best) + 1e-20
        assert ids[t].tolist() == best
        assert weights[t].tolist() == pytest.approx([float(scores[t, e]) / total * 1.5 for e in best], rel=1e-12)


@pytest.mark.parametrize("fmt", ["fp4", "plain", "mxfp8"])
def test_experts_inputs_are_rounded_in_groups_of_32(fmt: str) -> None:
    """FP32, so that only the activations are rounded: E4M3 under 2^ceil(log2(amax / 448))."""
    own = experts(fmt, 2, 32, 64, 1, torch.float32)
    x, ids, weights = torch.randn(3, 64), torch.tensor([[1], [2], [0]]), torch.rand(3, 1)
    x[:, :32] *= 2**13  # would drown the others under one scale; the weights there are zero
    for w in (own.w1, own.w3):
        w.view(torch.uint8 if w.element_size() == 1 else w.dtype)[..., : w.shape[-1] // 2] = 0

    def rounded(v: np.ndarray) -> np.ndarray:
        groups = v.reshape(-1, 32)
        scale = np.exp2(np.ceil(np.log2(np.maximum(np.abs(groups).max(-1, keepdims=True), 1e-4) / 448)))
        return ((groups / scale).astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale).ravel()

    actual = v41.moe_experts_32(x, ids, weights, own, 10.0, True)
    assert not torch.allclose(actual, reference.moe_experts(x, ids, weights, own, 10.0, False), rtol=1e-3)
    assert not actual[2].any()
    for t in range(2):
        w1, w3, w2 = (dequantise(w[t], None if s is None else s[t]).double().numpy()
                      for w, s in ((own.w1, own.s1), (own.w3, own.s3), (own.w2, own.s2)))  # fmt: skip
        into = rounded(x[t].double().numpy())
        gate, up = np.minimum(w1 @ into, 10), np.clip(w3 @ into, -10, 10)
        hidden = gate / (1 + np.exp(-gate)) * up * float(weights[t, 0])
        assert_same(actual[t], torch.from_numpy(w2 @ rounded(hidden)).float(), "moe_experts_32")


def test_ngrams_are_hashed_with_whole_numbers() -> None:
    ids = torch.tensor([[5, 99_091, 2, 99_090], [99_091, 0, 99_091, 7]])
    multipliers = torch.tensor([76632096046245, 4839876093313, 35959672319349, 73987337458391])
    primes = torch.tensor([[16_000_057, 101], [16_000_889, 103], [107, 109]])
    offsets = torch.tensor([[0, 10], [20, 30], [40, 50]])
    actual = v41.ngram_rows(ids, multipliers, primes, offsets)
    for t in range(2):
        products = [int(ids[t, s]) * int(multipliers[s]) for s in range(4)]
        assert max(products) < 2**63
        expected = []
        for length in range(1, 4):
            h = products[0]
            for product in products[1 : length + 1]:
                h ^= product
            expected += [h % int(primes[length - 1, j]) + int(offsets[length - 1, j]) for j in range(2)]
        assert actual[t].tolist() == expected


def test_rows_of_a_table_and_zeros_for_other_ranks() -> None:
    codes, scales = table(9, 64, torch.float8_e4m3fn)
    assert scales is not None
    values = codes.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    factor = scales.view(torch.uint8).numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    whole = torch.from_numpy(values * factor.repeat(32, axis=1)).bfloat16()
    actual = v41.engram_rows(codes, scales, torch.tensor([[3, 11], [12, 8]]), 3)
    zero = torch.zeros(64).bfloat16()
    assert torch.equal(actual[0], torch.cat((whole[0], whole[8])))
    assert torch.equal(actual[1], torch.cat((zero, whole[5])))
    assert torch.equal(v41.engram_rows(whole, None, torch.tensor([[5, 0]]), 0)[0], torch.cat((whole[5], whole[0])))


def test_the_gate_of_what_was_looked_up() -> None:
    x, kv, q_weight, k_weight = randn(3, 2, 6), randn(3, 18), randn(2, 6), randn(2, 6)
    x[0, 0] = 0  # dot 0: the sign is 0, so is its root, and the gate one half
    actual = v41.engram_gate(x, kv, q_weight, k_weight, 1e-20, torch.tensor([True, True, False]))
    for t, m in itertools.product(range(3), range(2)):
        key, value = kv[t, 6 * m : 6 * m + 6], kv[t, 12:]
        dot = sum(float(x[t, m, h] * q_weight[m, h] * k_weight[m, h] * key[h]) for h in range(6))
        for each in (x[t, m], key):
            dot /= math.sqrt(sum(float(v) ** 2 for v in each) / 6 + 1e-20)
        dot /= math.sqrt(6)
        sign = (dot > 0) - (dot < 0)
        gate = 0.0 if t == 2 else sigmoid(sign * math.sqrt(max(abs(dot), 1e-6)))
        assert_same(actual[t, m], x[t, m] + gate * value)

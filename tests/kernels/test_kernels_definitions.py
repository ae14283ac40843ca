"""The torch definitions against the formulas, transcribed literally with loops over float64 numbers."""

from __future__ import annotations

import cmath
import itertools
import math

import pytest
import torch
from kernel_cases import experts
from kernel_comparison import assert_same
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.reference.attention import compress_pool
from flagrelease.engine.kernels.reference.quantisation import dequantise

F64 = torch.float64


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def from_formula(shape: tuple[int, ...], formula: object) -> Tensor:
    """A tensor whose element at (i, j, ..) is formula(i, j, ..)."""
    assert callable(formula)
    y = torch.empty(shape, dtype=F64)
    for index in itertools.product(*map(range, shape)):
        y[index] = formula(*index)
    return y


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_rms_norm() -> None:
    x, w = randn(3, 10), randn(10)
    rms = [math.sqrt(sum(v * v for v in row) / 10 + 1e-6) for row in x.tolist()]
    assert_same(reference.rms_norm(x, w, 1e-6), from_formula((3, 10), lambda i, j: x[i, j] / rms[i] * w[j]))
    assert_same(reference.rms_norm(x, None, 1e-6), from_formula((3, 10), lambda i, j: x[i, j] / rms[i]))


def test_rope_is_a_complex_product_of_neighbours() -> None:
    x, angle = randn(2, 5, 3, 8), randn(5, 1, 4)
    for sign, inverse in ((1, False), (-1, True)):
        expected = torch.empty_like(x)
        for b, p, h, i in itertools.product(range(2), range(5), range(3), range(4)):
            turn = cmath.exp(sign * 1j * float(angle[p, 0, i]))
            z = complex(x[b, p, h, 2 * i], x[b, p, h, 2 * i + 1]) * turn
            expected[b, p, h, 2 * i], expected[b, p, h, 2 * i + 1] = z.real, z.imag
        assert_same(reference.apply_rope(x, angle.cos(), angle.sin(), inverse), expected)


def test_hadamard() -> None:
    x = randn(3, 16)
    expected = from_formula(
        (3, 16), lambda r, j: sum(float(x[r, i]) * (-1) ** (i & j).bit_count() for i in range(16)) / 4
    )
    assert_same(reference.hadamard(x), expected)
    with pytest.raises(ValueError, match="power of two"):
        reference.hadamard(randn(3, 12))


def test_swiglu_clamps_the_gate_above_and_the_rest_on_both_sides() -> None:
    gate, up, weight = randn(3, 50) * 9, randn(3, 50) * 9, randn(3)
    assert (gate < -10).any()
    assert (gate > 10).any()
    assert (up < -10).any()

    def formula(i: int, j: int) -> float:
        g, u = min(float(gate[i, j]), 10.0), max(-10.0, min(float(up[i, j]), 10.0))
        return g * sigmoid(g) * u * float(weight[i])

    assert_same(reference.swiglu(gate, up, 10.0, weight), from_formula((3, 50), formula))
    assert_same(reference.swiglu(gate, up, 10.0) * weight[:, None], from_formula((3, 50), formula))


def test_embedding_of_a_shard_and_add() -> None:
    table = randn(4, 3)
    ids = torch.tensor([[2, 5], [7, 3]])
    expected = from_formula((2, 2, 3), lambda i, j, c: table[ids[i, j] - 3, c] if 3 <= ids[i, j] < 7 else 0.0)
    assert_same(reference.embedding(ids, table, 3), expected)
    a, b = torch.tensor([[1.0], [2.0**-9]]).bfloat16(), torch.tensor([2.0**-9, 2.0**-10])
    assert reference.add(a, b, torch.bfloat16).tolist() == [[1.0, 1.0], [2.0**-8, 2.0**-9 + 2.0**-10]]


def test_products() -> None:
    x, w = randn(2, 3, 5), randn(4, 5)
    expected = from_formula((2, 3, 4), lambda b, m, n: sum(float(x[b, m, k] * w[n, k]) for k in range(5)))
    assert_same(reference.linear(x, w, F64), expected)
    grouped = randn(3, 4, 5)
    expected = from_formula((2, 3, 4), lambda b, g, n: sum(float(x[b, g, k] * grouped[g, n, k]) for k in range(5)))
    assert_same(reference.grouped_linear(x, grouped, F64), expected)


def test_quantised_products_apply_each_scale_where_it_belongs() -> None:
    """200 inputs: a whole and a ragged block; 130 outputs of FP8."""
    xq, xs = torch.randn(2, 200).to(torch.float8_e4m3fn), torch.rand(2, 2)
    w, ws = torch.randn(130, 200).to(torch.float8_e4m3fn), torch.rand(2, 2)
    x64, w64 = xq.double(), w.double()
    expected = torch.zeros(2, 130, dtype=F64)
    for m, n, k in itertools.product(range(2), range(130), range(200)):
        expected[m, n] += x64[m, k] * xs[m, k // 128].double() * w64[n, k] * ws[n // 128, k // 128].double()
    actual = reference.fp8_linear(xq, xs, w, ws, torch.float32)
    assert_same(actual, expected.float())
    assert_same(reference.fp8_linear(xq, xs, w, ws), expected.bfloat16())

    values = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    packed, ws = torch.randint(0, 256, (3, 80), dtype=torch.uint8), torch.rand(3, 5)
    expected = torch.zeros(2, 3, dtype=F64)
    for m, n, k in itertools.product(range(2), range(3), range(160)):
        code = int(packed[n, k // 2]) >> (4 * (k % 2)) & 15
        value = -values[code - 8] if code >= 8 else values[code]
        expected[m, n] += x64[m, k] * xs[m, k // 128].double() * value * ws[n, k // 32].double()
    assert_same(reference.fp4_linear(xq[:, :160], xs, packed, ws, torch.float32), expected.float())


def test_activations_without_their_scales_are_refused() -> None:
    w, ws = torch.zeros(8, 128).to(torch.float8_e4m3fn), torch.ones(1, 1)
    x = torch.zeros(2, 128)
    with pytest.raises(ValueError, match="come with scales"):
        reference.fp8_linear(x.to(torch.float8_e4m3fn), None, w, ws)
    with pytest.raises(ValueError, match="come without scales"):
        reference.fp8_linear(x, torch.ones(2, 1), w, ws)
    with pytest.raises(ValueError, match="columns"):
        reference.fp8_linear(x[:, :64], None, w, ws)


def test_gate_and_route() -> None:
    x, w, bias = randn(5, 7), randn(9, 7), randn(9)
    scores = from_formula((5, 9), lambda t, e: math.sqrt(math.log1p(math.exp(float(x[t] @ w[e])))))
    assert_same(reference.gate_scores(x, w), scores)
    ids, weights = reference.route(scores, bias, 3, 1.5)
    for t in range(5):
        best = sorted(range(9), key=lambda e: -float(scores[t, e] + bias[e]))[:3]
        total = sum(float(scores[t, e]) for e in best)
        assert ids[t].tolist() == best
        assert weights[t].tolist() == pytest.approx([float(scores[t, e]) / total * 1.5 for e in best], rel=1e-12)


def test_gate_scores_keep_what_a_plain_logarithm_loses() -> None:
    """log(1 + exp(-40)) is 0 in FP32, and so would be the score."""
    score = reference.gate_scores(torch.tensor([[-40.0]]), torch.ones(1, 1))
    assert score.item() == pytest.approx(math.exp(-20), rel=1e-6)


def test_equal_scores_are_routed_to_the_lower_experts() -> None:
    assert reference.route(torch.ones(1, 30), None, 4, 1.0)[0].tolist() == [[0, 1, 2, 3]]


def test_hashed_routes_are_the_table_row_of_the_token() -> None:
    scores, table = torch.rand(2, 5, dtype=F64), torch.tensor([[0, 1], [4, 2], [3, 0]])
    ids, weights = reference.route_hashed(scores, table, torch.tensor([1, 2]), 2.0)
    assert ids.tolist() == [[4, 2], [3, 0]]
    for t, (a, b) in enumerate([(4, 2), (3, 0)]):
        total = float(scores[t, a] + scores[t, b])
        assert weights[t].tolist() == pytest.approx([2 * float(scores[t, e]) / total for e in (a, b)], rel=1e-12)


def test_experts_are_the_sum_of_their_formula() -> None:
    """Without quantisation, float64 throughout, from decoded FP4 weights; experts 2, 3, 4 of 0 .. 5 are local."""
    stored = experts("fp4", 3, 32, 64, first=2)
    w1, w3, w2 = (
        dequantise(w, s).double() for w, s in ((stored.w1, stored.s1), (stored.w3, stored.s3), (stored.w2, stored.s2))
    )  # decoding has its own test
    x, weights = randn(5, 64) * 4, torch.rand(5, 3, dtype=F64)
    ids = torch.tensor([[0, 2, 4], [3, 1, 5], [0, 1, 5], [4, 3, 2], [2, 2, 0]])
    expected = torch.zeros(5, 64, dtype=F64)
    for t, slot in itertools.product(range(5), range(3)):
        e = int(ids[t, slot]) - 2
        if 0 <= e < 3:
            hidden = [
                g * sigmoid(g) * max(-10.0, min(10.0, float(w3[e, i] @ x[t]))) * float(weights[t, slot])
                for i in range(32)
                for g in [min(10.0, float(w1[e, i] @ x[t]))]
            ]
            expected[t] += w2[e] @ torch.tensor(hidden, dtype=F64)
    plain = type(stored)(w1, w3, w2, None, None, None, first=2)
    assert_same(reference.moe_experts(x, ids, weights, plain, 10.0, False), expected)
    close = reference.moe_experts(x.float(), ids, weights.float(), stored, 10.0, False)
    assert torch.allclose(close.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not expected[2].any()


def test_experts_quantise_both_activations_and_round_each_product() -> None:
    """One expert a token: the output is BF16 w2 of the rounded hidden layer, step by step as upstream computes it."""
    stored = experts("fp8", 2, 128, 256, first=0)
    x = torch.randn(4, 256).bfloat16()
    ids, weights = torch.tensor([[0], [1], [1], [0]]), torch.rand(4, 1)
    actual = reference.moe_experts(x, ids, weights, stored, 10.0, True)
    for t in range(4):
        e = int(ids[t])
        assert stored.s1 is not None
        assert stored.s3 is not None
        assert stored.s2 is not None
        xq = reference.act_quant(x[t : t + 1])
        gate = reference.fp8_linear(*xq, stored.w1[e], stored.s1[e])
        up = reference.fp8_linear(*xq, stored.w3[e], stored.s3[e])
        hidden = reference.swiglu(gate, up, 10.0, weights[t])
        y = reference.fp8_linear(*reference.act_quant(hidden), stored.w2[e], stored.s2[e])
        assert torch.equal(actual[t : t + 1], y.float())


def attention_literally(q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float) -> Tensor:
    out = torch.zeros_like(q)
    for b, s, h in itertools.product(*map(range, q.shape[:3])):
        valid = [int(j) for j in idx[b, s] if j != -1]
        if not valid:
            continue
        z = [scale * float(q[b, s, h] @ kv[b, j]) for j in valid]
        m = max(z)
        denominator = sum(math.exp(v - m) for v in z) + math.exp(float(sink[h]) - m)
        out[b, s, h] = sum(math.exp(v - m) * kv[b, j] for v, j in zip(z, valid, strict=True)) / denominator
    return out


def test_sparse_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in chunks of one query, and with a sink far above and far below the scores."""
    q, kv = randn(2, 4, 3, 8), randn(2, 9, 8)
    sink = torch.tensor([0.3, -80.0, 95.0], dtype=F64)
    idx = torch.randint(-1, 9, (2, 4, 12))
    idx[0, 1] = -1
    idx[1, 0, :2] = 5
    expected = attention_literally(q, kv, sink, idx, 0.4)
    assert_same(reference.sparse_attention(q, kv, sink, idx, 0.4), expected)
    monkeypatch.setattr("flagrelease.engine.kernels.reference.attention._GATHER_ELEMENTS", 1)
    assert_same(reference.sparse_attention(q, kv, sink, idx, 0.4), expected)


def test_indexer_scores() -> None:
    q, k, weights = randn(2, 3, 4, 8), randn(2, 5, 8), randn(2, 3, 4)
    expected = from_formula(
        (2, 3, 5),
        lambda b, s, n: sum(max(0.0, float(q[b, s, h] @ k[b, n])) * float(weights[b, s, h]) for h in range(4)),
    )
    assert_same(reference.indexer_scores(q, k, weights), expected)


def test_topk_visible() -> None:
    scores = torch.randn(2, 3, 20).round()
    visible = torch.tensor([[0, 1, 5], [6, 13, 20]])
    actual = reference.topk_visible(scores, visible, 6, offset=100)
    assert actual.dtype == torch.int32
    for b, s in itertools.product(range(2), range(3)):
        best = sorted(range(int(visible[b, s])), key=lambda n: (-float(scores[b, s, n]), n))[:6]
        assert actual[b, s].tolist() == [n + 100 for n in sorted(best)] + [-1] * (6 - len(best))
    assert reference.topk_visible(scores, visible, 64).shape == (2, 3, 20)


def test_compress_pool() -> None:
    kv, score = randn(3, 8, 5), randn(3, 8, 5)
    score[0, :4] = -math.inf

    def formula(w: int, d: int) -> float:
        p = [math.exp(float(score[w, s, d])) for s in range(8)]
        return sum(p[s] * float(kv[w, s, d]) for s in range(8)) / sum(p)

    assert_same(compress_pool(kv, score), from_formula((3, 5), formula))
    # planted: a softmax over the channels
    assert not torch.allclose((kv * score.softmax(-1)).nansum(-2), compress_pool(kv, score))


@pytest.mark.parametrize(("ratio", "slots"), [(4, 8), (8, 8)])
def test_compress_windows_one_token_after_the_other(ratio: int, slots: int) -> None:
    """Tokens that come one by one leave the same memory and entries as those that come together."""
    count, c = 22, 6
    kv, score, ape = randn(1, count, c), randn(1, count, c), randn(ratio, c)
    empty = kv.new_zeros(1, slots + 2, c), kv.new_full((1, slots + 2, c), -math.inf)

    def found(token: int, begin: int) -> int:
        return slots if token < 0 else slots + 2 + token - begin if token >= begin else token % slots

    def step(memory: list[torch.Tensor], begin: int, end: int) -> torch.Tensor:
        """Append tokens begin .. end - 1 of all."""
        ends = [past for past in range(ratio, end + 1, ratio) if past > begin]
        source = [[found(token, begin) for token in range(past - slots, past)] for past in ends]
        kept = [t % slots if t >= end - slots else -1 for t in range(begin, end)]
        return reference.compress_windows(
            kv[:, begin:end], score[:, begin:end], ape, *memory, None,
            torch.tensor(source, dtype=torch.int64).view(1, -1, slots), torch.tensor([kept]),
            torch.arange(begin, end)[None], kv.dtype,
        )  # fmt: skip

    one, many = [t.clone() for t in empty], [t.clone() for t in empty]
    expected = torch.cat([step(one, t, t + 1) for t in range(count)], 1)
    got = torch.cat([step(many, 0, 5), step(many, 5, count)], 1)
    assert expected.shape[1] == count // ratio
    assert torch.allclose(got, expected)
    for a, b in zip(one, many, strict=True):
        assert torch.equal(a, b)


def sinkhorn_literally(
    mix: list[float], scale: list[float], base: list[float], n: int, iters: int, eps: float
) -> tuple:
    pre = [sigmoid(mix[j] * scale[0] + base[j]) + eps for j in range(n)]
    post = [2 * sigmoid(mix[n + j] * scale[1] + base[n + j]) for j in range(n)]
    c = [[mix[2 * n + n * j + k] * scale[2] + base[2 * n + n * j + k] for k in range(n)] for j in range(n)]
    for j in range(n):
        e = [math.exp(v - max(c[j])) for v in c[j]]
        c[j] = [v / sum(e) + eps for v in e]

    def columns() -> None:
        for k in range(n):
            total = sum(c[j][k] for j in range(n)) + eps
            for j in range(n):
                c[j][k] /= total

    columns()
    for _ in range(iters - 1):
        for j in range(n):
            total = sum(c[j]) + eps
            c[j] = [v / total for v in c[j]]
        columns()
    return pre, post, c


@pytest.mark.parametrize(("n", "iters"), [(4, 20), (2, 1)])
def test_hyper_connections(n: int, iters: int) -> None:
    t, h, eps, norm_eps = 3, 5, 1e-3, 1e-2  # large enough that a misplaced one shows
    x, fn, scale, base = randn(t, n, h), randn(n * (n + 2), n * h), randn(3), randn(n * (n + 2))
    o = randn(t, h)
    y, post, comb = reference.hc_pre(x, fn, scale, base, iters, eps, norm_eps)
    streams = reference.hc_post(o, x, post, comb)
    for i in range(t):
        flat = x[i].flatten()
        rho = 1 / math.sqrt(float(flat @ flat) / (n * h) + norm_eps)
        mix = [float(row @ flat) * rho for row in fn]
        pre_l, post_l, comb_l = sinkhorn_literally(mix, scale.tolist(), base.tolist(), n, iters, eps)
        assert_same(post[i], torch.tensor(post_l, dtype=F64))
        assert_same(comb[i], torch.tensor(comb_l, dtype=F64))
        assert_same(y[i], sum(pre_l[j] * x[i, j] for j in range(n)))
        for k in range(n):
            assert_same(streams[i, k], post_l[k] * o[i] + sum(comb_l[j][k] * x[i, j] for j in range(n)))


def test_hc_head() -> None:
    x, fn, scale, base = randn(3, 4, 5), randn(4, 20), randn(1), randn(4)
    y = reference.hc_head(x, fn, scale, base, 1e-3, 1e-2)
    for i in range(3):
        flat = x[i].flatten()
        rho = 1 / math.sqrt(float(flat @ flat) / 20 + 1e-2)
        pre = [sigmoid(float(fn[j] @ flat) * rho * float(scale) + float(base[j])) + 1e-3 for j in range(4)]
        assert_same(y[i], sum(pre[j] * x[i, j] for j in range(4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_results_have_the_inputs_type_and_one_rounding(dtype: torch.dtype) -> None:
    """BF16 in: the float64 result of the same BF16 numbers, rounded once (a tie may fall either way: 2^-8)."""
    x, w = torch.randn(6, 64).to(dtype), torch.randn(64)
    actual = reference.rms_norm(x, w, 1e-6)
    exact = reference.rms_norm(x.double(), w.double(), 1e-6)
    assert actual.dtype == dtype
    assert_same(actual, exact.to(dtype))
    attention = torch.randn(1, 5, 4, 16).to(dtype), torch.randn(1, 9, 16).to(dtype)
    sink, idx = torch.randn(4), torch.randint(0, 9, (1, 5, 6))
    actual = reference.sparse_attention(*attention, sink, idx, 0.25)
    exact = reference.sparse_attention(*(a.double() for a in attention), sink.double(), idx, 0.25)
    assert_same(actual, exact.to(dtype), "sparse_attention")

"""KL and the other figures of tokens against their definitions over whole distributions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import entropy
from torch import Tensor

from flagrelease.records.rules import LogitsRules
from flagrelease.validate.logits.distribution import Figures, compare, join, keep, part
from flagrelease.validate.logits.sums import FIELDS, outliers, sum_up

V = 40
RULES = LogitsRules()


def pair(seed: int, tokens: int = 30, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = 3 * torch.randn(tokens, V, generator=generator)
    tested = reference + noise * torch.randn(tokens, V, generator=generator)
    return reference, tested, torch.randint(V, (tokens,), generator=generator)


def full_kl(reference: Tensor, tested: Tensor) -> np.ndarray:
    p, q = (torch.from_numpy(np.exp(log_softmax(x.double().numpy(), axis=-1))) for x in (reference, tested))
    return np.asarray(entropy(p.numpy(), q.numpy(), axis=-1))


@given(st.integers(0, 2**31), st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_kl_over_the_whole_vocabulary_is_scipys(seed: int, noise: float) -> None:
    reference, tested, targets = pair(seed, noise=noise)
    figures = compare(keep(reference, targets, V), tested, targets)
    np.testing.assert_allclose(figures.kl, full_kl(reference, tested), rtol=1e-5, atol=2e-6)
    assert np.isneginf(keep(reference, targets, V).tail).all()


@given(st.integers(0, 2**31), st.integers(2, V), st.integers(2, V))
@settings(max_examples=60, deadline=None)
def test_kept_kl_is_a_lower_bound_that_grows_with_what_is_kept(seed: int, one: int, other: int) -> None:
    reference, tested, targets = pair(seed)
    few, many = (compare(keep(reference, targets, top), tested, targets).kl for top in sorted((one, other)))
    assert (few <= many + 1e-6).all()
    assert (many <= full_kl(reference, tested) + 1e-6).all()


def test_kl_of_kept_tokens_and_the_rest_is_that_of_the_buckets() -> None:
    reference, tested, targets = pair(1)
    top = 5
    kept = keep(reference, targets, top)
    p, q = (np.exp(log_softmax(x.double().numpy(), axis=-1)) for x in (reference, tested))
    for token, ids in enumerate(np.argsort(-p, axis=-1)[:, :top]):
        np.testing.assert_array_equal(kept.ids[token], ids)
        buckets = [np.append(x[token, ids], 1 - x[token, ids].sum()) for x in (p, q)]
        assert compare(kept, tested, targets).kl[token] == pytest.approx(entropy(*buckets), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("top", [5, V])
def test_equal_runs_differ_by_exactly_nothing(top: int) -> None:
    reference, _, targets = pair(2)
    reference[3, :4] = 9.0  # equal best tokens: whichever was kept first, equal runs agree
    figures = compare(keep(reference, targets, top), reference.clone(), targets)
    assert (figures.kl == 0).all()
    assert figures.agree.all()
    assert (figures.reference == figures.tested).all()


def test_figures_of_a_token_by_hand() -> None:
    reference, tested = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    figures = compare(keep(reference, torch.tensor([0]), 2), tested, torch.tensor([0]))
    z = np.exp([2.0, 1, 0]).sum()
    assert figures.margin[0] == pytest.approx(1.0)
    assert figures.reference[0] == pytest.approx(2 - np.log(z))
    assert figures.tested[0] == pytest.approx(-np.log(z))
    assert figures.tail[0] == pytest.approx(1 / z)
    assert not figures.agree[0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_are_found_and_do_not_spread(bad: float) -> None:
    reference, tested, targets = pair(4)
    tested[7, 11] = bad
    figures = compare(keep(reference, targets, 10), tested, targets)
    assert list(np.flatnonzero(~figures.finite)) == [7]
    assert np.isfinite(figures.kl).all()
    assert not figures.agree[7]
    assert sum_up([figures], RULES.oracle).total.field("tokens")[0] == 29


def test_pieces_are_the_whole() -> None:
    reference, tested, targets = pair(5)
    kept = keep(reference, targets, 10)
    pieces = [slice(0, 11), slice(11, 12), slice(12, 30)]
    joined = join([keep(reference[piece], targets[piece], 10) for piece in pieces])
    np.testing.assert_array_equal(joined.logp, kept.logp)
    figures = [
        compare(part(kept, piece.start, piece.stop - piece.start), tested[piece], targets[piece]) for piece in pieces
    ]
    np.testing.assert_array_equal(join(figures).kl, compare(kept, tested, targets).kl)


def figures_of(reference: Tensor, tested: Tensor, targets: Tensor) -> Figures:
    return compare(keep(reference, targets, V), tested, targets)


def test_statistics_are_their_definitions() -> None:
    reference, tested, targets = pair(6, tokens=200, noise=1.0)
    limits = RULES.oracle.model_copy(update={"tail_kl": 0.4})
    halves = [slice(0, 60), slice(60, 200)]
    sums = sum_up([figures_of(reference[h], tested[h], targets[h]) for h in halves], limits).total
    logp, logq = (log_softmax(x.double().numpy(), axis=-1) for x in (reference, tested))
    kl = full_kl(reference, tested)
    p, q = (x[np.arange(200), targets.numpy()] for x in (logp, logq))
    ordered = np.sort(logp, axis=-1)
    clear = ordered[:, -1] - ordered[:, -2] > limits.margin
    same = logp.argmax(-1) == logq.argmax(-1)
    expected = {
        "mean_kl": kl.mean(),
        "above": (kl > 0.4).mean(),
        "top1": same.mean(),
        "top1_clear": same[clear].mean(),
        "perplexity": np.exp(-q.mean()) / np.exp(-p.mean()) - 1,
        "distance": np.abs(p - q).mean(),
        "k1": (p - q).mean(),
        "k3": (np.exp(q - p) - 1 - (q - p)).mean(),
    }
    assert 0 < expected["above"] < 1
    assert 0 < expected["top1_clear"] < 1
    for name, value in expected.items():
        assert getattr(sums, name)[0] == pytest.approx(value, rel=1e-4), name
    assert len(FIELDS) == sums.table.shape[1]


def test_outliers_are_far_off_where_the_reference_is_sure() -> None:
    sure, unsure = torch.tensor([9.0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0])
    reference = torch.stack([sure, sure, unsure])
    tested = torch.stack([sure.flip(0), sure, unsure.flip(0) * 9])
    figures = compare(keep(reference, torch.zeros(3, dtype=torch.long), 4), tested, torch.zeros(3, dtype=torch.long))
    assert outliers(figures, RULES) == 1

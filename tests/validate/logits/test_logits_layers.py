"""What the observer sees against the model itself, errors against their formulas, and where a step is put."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from defective_ports import LAYER, RULES, ported
from engine_checkpoint import random_tokens
from logits_study import Study

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.v4.block import Block
from flagrelease.records.rules import LayerLimits, ReplayRules
from flagrelease.validate.logits.layer_verdict import judge_layers
from flagrelease.validate.logits.layers import LayerObserver, floats, sampled_positions
from flagrelease.validate.logits.localise import ERRORS, Errors, first_step, layer_errors
from flagrelease.validate.logits.replay import Replayer, Shape

LIMITS = LayerLimits()
TOKENS = random_tokens(150, seed=77)


def observed(study: Study, positions: tuple[int, ...], chunk: int) -> dict[str, np.ndarray]:
    observer = LayerObserver(study.model, positions)
    Replayer(study.model, RULES.replay, Shape(chunk), len(TOKENS)).run(TOKENS, {}, keeping=False, observer=observer)
    return observer.states()


def test_the_observer_sees_what_the_layers_return(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    model, positions, returned = study.model, (0, 70, 148), []
    states = observed(study, positions, chunk=512)
    forward = Block.forward

    def remember(block: Block, *args: Any) -> torch.Tensor:
        returned.append(forward(block, *args))
        return returned[-1]

    monkeypatch.setattr(Block, "forward", remember)
    model.logits(TOKENS[:-1])
    assert len(returned) == 5
    for layer, streams in enumerate(returned):
        expected = streams[0, list(positions)].double().numpy()
        np.testing.assert_array_equal(floats(states[f"{layer}.streams"]), expected)
    assert states["1.entries"].shape == (3, model.config.index_topk)
    assert "0.entries" not in states
    table = model.blocks[0].ffn.router.tid2eid
    assert table is not None
    assert states["0.experts"][1].tolist() == table[TOKENS[70]].tolist()


def test_states_do_not_depend_on_where_steps_are_cut(study: Study) -> None:
    whole, cut = (observed(study, (3, 64, 127, 128), chunk) for chunk in (512, 64))
    assert whole.keys() == cut.keys()
    errors = layer_errors(whole, cut, 5)
    assert np.nanmax(errors["streams"]) < 1e-2
    assert np.nanmin(errors["entries"]) == 1.0


def test_an_operator_that_is_not_called_is_an_error(study: Study) -> None:
    observer = LayerObserver(study.model, (0,))
    with pytest.raises(RuntimeError, match="hc_post 0 times for 5 layers"):
        observer.states()


@pytest.mark.parametrize(
    ("tokens", "count", "expected"), [(9, 1, [7]), (9, 2, [3, 7]), (9, 4, [1, 3, 5, 7]), (4, 9, [0, 1, 2])]
)
def test_positions_are_spread_and_end_at_the_last_input(tokens: int, count: int, expected: list[int]) -> None:
    assert list(sampled_positions(tokens, ReplayRules(layer_positions=count))) == expected


def states(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for layer in range(2):
        bf16 = torch.from_numpy(generator.normal(size=(3, 2, 4))).bfloat16()
        made[f"{layer}.streams"] = bf16.view(torch.uint16).numpy()
        made[f"{layer}.attention"] = generator.normal(size=(3, 4)).astype(np.float32)
        made[f"{layer}.scores"] = generator.normal(size=(3, 6)).astype(np.float32)
        made[f"{layer}.experts"] = np.argsort(-made[f"{layer}.scores"])[:, :2].astype(np.int32)
    made["1.entries"] = np.array([[0, 1, 2], [0, 1, -1], [-1, -1, -1]], dtype=np.int32)
    return made


def test_errors_are_their_formulas() -> None:
    ours, theirs = states(1), states(2)
    theirs["1.entries"] = np.array([[2, 1, 3], [0, 4, -1], [-1, -1, -1]], dtype=np.int32)
    errors = layer_errors(ours, theirs, 2)
    a, b = (torch.from_numpy(x["1.streams"]).view(torch.bfloat16).double().flatten(1) for x in (ours, theirs))
    np.testing.assert_allclose(errors["streams"][1], ((b - a).norm(dim=1) / a.norm(dim=1)).numpy())
    np.testing.assert_allclose(errors["cosine"][1], torch.cosine_similarity(a, b, dim=1).numpy())
    np.testing.assert_allclose(errors["entries"][1], [2 / 4, 1 / 3, 1.0])
    assert np.isnan(errors["entries"][0]).all()
    for position in range(3):
        chosen, other = (set(x["0.experts"][position].tolist()) for x in (ours, theirs))
        assert errors["experts"][0, position] == len(chosen & other) / 2
        ordered = sorted(ours["0.scores"][position].tolist(), reverse=True)
        gap = errors["gap"][0, position]
        assert np.isnan(gap) if chosen == other else gap == pytest.approx(ordered[1] - ordered[2])


def test_equal_states_have_no_error() -> None:
    errors = layer_errors(states(1), states(1), 2)
    assert (errors["streams"] == 0).all()
    assert (errors["experts"] == 1).all()
    np.testing.assert_allclose(errors["cosine"], 1)


def curves(attention: list[float], streams: list[float]) -> Errors:
    errors = {kind: np.zeros((len(streams), 3)) for kind in ERRORS}
    errors["attention"] += np.array(attention)[:, None]
    errors["streams"] += np.array(streams)[:, None]
    return errors


def test_growth_as_the_root_of_depth_is_no_step() -> None:
    growth = [0.004 * np.sqrt(layer + 1) for layer in range(60)]
    assert first_step(curves(growth, growth), curves(growth, growth), LIMITS) is None
    assert first_step(curves(growth, growth), curves([0.0] * 60, [0.0] * 60), LIMITS) is None


def test_a_step_is_put_where_it_is() -> None:
    growth, nothing = [0.002 * (layer + 1) ** 0.5 for layer in range(12)], [0.0] * 12
    stepped = [error + (0.1 if layer >= 7 else 0) for layer, error in enumerate(growth)]
    attention = first_step(curves(stepped, stepped), curves(nothing, nothing), LIMITS)
    assert attention is not None
    assert (attention.layer, attention.half) == (7, "attention")
    late = [error + (0.1 if layer >= 8 else 0) for layer, error in enumerate(growth)]
    ffn = first_step(curves(late, stepped), curves(nothing, nothing), LIMITS)
    assert ffn is not None
    assert (ffn.layer, ffn.half) == (7, "feed-forward")
    noisy = curves([0.05] * 12, [0.05] * 12)
    assert first_step(curves(stepped, stepped), noisy, LIMITS) is None  # the floor is as high


def judged(errors: Errors, floor: Errors) -> dict[str, str]:
    return {measure.name: measure.verdict for measure in judge_layers(errors, floor, LIMITS).measures}


def test_layers_are_judged_by_their_limits_or_by_the_floor() -> None:
    sound, noisy = curves([0.01] * 8, [0.01] * 8), curves([0.03] * 8, [0.03] * 8)
    for errors in (sound, noisy):
        errors["cosine"] += 1
        errors["experts"] += 1
    assert set(judged(sound, sound).values()) == {"pass"}
    assert judged(noisy, sound) == judged(sound, sound) | {"last_error": "pass"}  # 0.03 is three floors
    noisy["streams"] += 0.001
    noisy["cosine"][2] -= 2e-4
    noisy["experts"][7, :2] = 0.9
    assert judged(noisy, sound) == {
        "last_error": "fail", "early_cosine": "fail", "late_cosine": "pass", "experts": "fail"
    }  # fmt: skip
    noisy["cosine"][4] -= 2e-3
    assert judged(noisy, sound)["late_cosine"] == "fail"
    assert set(judged(noisy, noisy).values()) == {"pass"}


def test_a_port_that_rounds_may_differ_by_what_rounding_does() -> None:
    loose = LIMITS.loosened(2)
    growth, nothing = [0.0, 0.0, 0.05, 0.05], [0.0] * 4
    assert first_step(curves(growth, growth), curves(nothing, nothing), LIMITS) is not None
    assert first_step(curves(growth, growth), curves(nothing, nothing), loose) is None
    assert (loose.last_error, loose.experts) == pytest.approx((0.04, 0.98))
    assert (loose.early_cosine, loose.late_cosine) == pytest.approx((0.9996, 0.996))


def test_a_wrong_operator_in_one_layer_is_put_there(study: Study) -> None:
    calls = 0

    def spoil(ops: Operators) -> None:
        inner = ops.sparse_attention

        def sparse_attention(*args: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return inner(*args) * (1.5 if calls == LAYER + 2 else 1)

        ops.sparse_attention = sparse_attention

    sound = observed(study, (100, 148), chunk=512)
    port = ported(study.model, spoil)
    observer = LayerObserver(port, (100, 148))
    Replayer(port, RULES.replay, Shape(512), len(TOKENS)).run(TOKENS, {}, keeping=False, observer=observer)
    errors = layer_errors(sound, observer.states(), 5)
    step = first_step(errors, layer_errors(sound, sound, 5), LIMITS)
    assert step is not None
    assert (step.layer, step.half) == (LAYER + 1, "attention")

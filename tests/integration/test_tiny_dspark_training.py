"""The training of the tiny model's draft stages: its losses know trained stages, and a few steps lower them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

TINY = Path(__file__).parents[2] / "examples" / "tiny"
sys.path.insert(0, str(TINY))

import dspark_checkpoint  # noqa: E402
import dspark_train  # noqa: E402
import model as plain  # noqa: E402
from dspark import DraftStages  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

SMALL = dspark_train.Recipe(steps=5, workers=0, batch=2, anchors=6, warmup=1)


def test_losses_know_trained_stages_from_random_ones() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target, trained = dspark_checkpoint.load(dspark_train.CHECKPOINT, plain.NATIVE)
    random = DraftStages(trained.config, trained.draft_config, plain.NATIVE)
    stream = iter(dspark_train.Drafting(SMALL))
    ids, kinds, anchors = default_collate([next(stream), next(stream)])
    rotations = plain.Rotations.of(trained.config, SMALL.positions + 5, ids.device)
    found = {}
    for name, stages in (("trained", trained), ("random", random)):
        with torch.no_grad():
            losses = dspark_train.losses_of(target, stages, SMALL, ids, kinds, anchors, rotations, torch.tensor(False))
        found[name] = {key: loss.mean().item() for key, loss in losses.items()}
    assert found["trained"]["total_variation"] < 0.3 < 0.9 < found["random"]["total_variation"]
    assert found["trained"]["confidence"] < 0.3 < found["random"]["confidence"]
    assert found["trained"]["accepted"] > 0.6 > 0.1 > found["random"]["accepted"]


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_write_stages_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(dspark_train.dspark_evaluate, "summary", lambda *_, **__: {})
    dspark_train.train_stages(SMALL, tmp_path, dspark_train.train.CHECKPOINT, "cpu", log_every=1)
    losses = [json.loads(line)["cross_entropy"] for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == SMALL.steps
    assert min(losses[-2:]) < losses[0] - 0.3
    target, _ = dspark_checkpoint.load(tmp_path, plain.NATIVE)
    again, _ = dspark_checkpoint.load(dspark_train.CHECKPOINT, plain.NATIVE)
    assert all(torch.equal(target.state_dict()[name], weight) for name, weight in again.state_dict().items())

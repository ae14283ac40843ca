"""The baseline and the port on two ranks: one writes, both get the stage."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from defective_ports import RULES
from logits_study import Study
from ranks import on_ranks

from flagrelease import engine
from flagrelease.records.report import Stage
from flagrelease.validate.logits.record import record_baseline
from flagrelease.validate.logits.stage import run_logits

FEW = RULES.model_copy(
    update={
        "replay": RULES.replay.model_copy(update={"documents": 2, "tokens": 24, "decode_tokens": 4}),
        "min_documents": 2,
    }
)


def both(source: Path, documents: Path, release: Path, out: Path) -> list[Stage]:
    """The stage as each rank got it."""
    record_baseline(source, out / "baseline", FEW, documents=documents, device="cpu")
    stage = run_logits(engine.load(release, "bf16"), release, out / "baseline", FEW, out / "work", layers=True)
    seen: list[Stage | None] = [None, None]
    dist.all_gather_object(seen, stage)
    return [each for each in seen if each is not None]


def test_two_ranks_agree_and_one_writes(study: Study, tmp_path: Path) -> None:
    first, second = on_ranks(2, both, study.source, study.documents, study.release, tmp_path)
    assert first == second
    assert first.figures["baseline"]["machine"]["ranks"] == 2
    for comparison in first.figures["comparisons"]:
        if comparison["reference"] == "oracle":
            assert comparison["mean_kl"] == 0  # the oracle's weights, on the oracle's ranks
            assert comparison["tokens"] == {"prefill": 46, "decode": 8}[comparison["replay"]]
    assert first.figures["layers"]["curves"]["streams"]["port"] == [0.0] * 5

"""Recording and comparing on an accelerator: its operators, captured decoding, states of layers brought to the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from defective_ports import RULES
from logits_study import Study

from flagrelease import engine
from flagrelease.validate.logits.record import record_baseline
from flagrelease.validate.logits.stage import run_logits

pytestmark = pytest.mark.gpu


def test_a_port_on_the_oracles_device_passes(study: Study, tmp_path: Path) -> None:
    record_baseline(study.source, tmp_path / "baseline", RULES, documents=study.documents, device="cuda")
    model = engine.load(study.release, "bf16", device="cuda")
    made = run_logits(model, study.release, tmp_path / "baseline", RULES, tmp_path / "work", layers=True)
    assert made.verdict == "pass", made.detail
    assert made.figures["baseline"]["machine"]["device"] == "cuda"
    assert made.figures["layers"]["step"] is None
    for comparison in made.figures["comparisons"]:
        if comparison["reference"] == "oracle":
            assert comparison["mean_kl"] < 1e-4


def test_a_port_on_another_device_is_near_the_oracle(study: Study, tmp_path: Path) -> None:
    """Ten times nearer than to the native run; an H200 and an x86 CPU are 3e-4 and 4e-4 nats apart."""
    model = engine.load(study.release, "bf16", device="cuda")
    made = run_logits(model, study.release, study.baseline, RULES, tmp_path / "work")
    kl = {(c["reference"], c["replay"]): c["mean_kl"] for c in made.figures["comparisons"]}
    for replay in ("prefill", "decode"):
        assert 0 < kl["oracle", replay] < kl["native", replay] / 10

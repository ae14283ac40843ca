"""The logits stage with DeepSeek-V4.1: its layers are looked at through its own operators, and a defect is located."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from defective_ports import RULES
from engine_checkpoint import random_tokens
from torch import Tensor

from flagrelease import engine
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.engine.kernels.operators import Operators
from flagrelease.records.recipe import ConvertSpec
from flagrelease.records.rules import ReplayRules
from flagrelease.source.source import read_source
from flagrelease.validate.logits.record import record_baseline
from flagrelease.validate.logits.stage import run_logits

pytestmark = pytest.mark.slow  # six seconds

# Random weights turn rounding into another model: how far a BF16 release is from the native run says nothing here, so
# only what is said of the oracle is looked at.
SHORT = RULES.model_copy(
    update={
        "replay": ReplayRules(
            documents=3, tokens=48, long_tokens=60, decode_tokens=4, chunk=40, floor_chunk=24, floor_rows=2,
            layer_positions=4,
        ),
        "min_documents": 3, "min_tokens": 100, "min_decode_tokens": 12,
    }
)  # fmt: skip


class AnotherBias(Operators):
    """Text is routed by the bias of images in layer 4."""

    def __init__(self) -> None:
        self.calls = 0

    def route_modal(self, scores: Tensor, bias: Tensor, bias_vl: Tensor, image: Any, topk: int, scale: float) -> Any:
        wrong = self.calls % 8 == 4
        self.calls += 1
        return Operators.route_modal(scores, bias_vl if wrong else bias, bias_vl, image, topk, scale)


def test_a_sound_release_passes_and_a_wrong_bias_is_located(v41_release: Path, tmp_path: Path) -> None:
    documents, baseline = tmp_path / "documents.jsonl", tmp_path / "baseline"
    given = [{"name": f"{n}", "kind": "chance", "tokens": random_tokens(48, seed=n)} for n in range(3)]
    documents.write_text("".join(json.dumps(each) + "\n" for each in given))
    record_baseline(v41_release, baseline, SHORT, documents=documents, device="cpu")
    spec = ConvertSpec()
    convert(
        make_plan(read_source(v41_release), [parse_target("bf16:hf")], spec), tmp_path, workers=1, lookup=cpu_lookup,
        progress=lambda _: None,
    )  # fmt: skip
    release = tmp_path / "bf16-hf"
    model = engine.load(release, "bf16")
    sound = run_logits(model, release, baseline, SHORT, tmp_path / "sound", layers=True)
    assert "oracle" not in sound.detail
    assert all(each["mean_kl"] == 0 for each in sound.figures["comparisons"] if each["reference"] == "oracle")
    layers = sound.figures["layers"]
    assert layers["step"] is None
    assert layers["curves"]["streams"]["port"] == [0.0] * 8
    assert layers["curves"]["entries"]["port"].count(1.0) == 4
    wrong = run_logits(replace(model, ops=AnotherBias()), release, baseline, SHORT, tmp_path / "wrong", layers=True)
    assert wrong.detail.endswith("The first step is in layer 4, feed-forward.")

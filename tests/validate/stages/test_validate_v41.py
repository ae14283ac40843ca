"""A whole validation of DeepSeek-V4.1: its baseline recorded by the engine, and its BF16 release judged by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import v41_checkpoint
from defective_ports import write_documents
from scripted_exam import choice_records, write_jsonl
from small_validation import LOGITS, QUESTIONS, Workshop, recipe, verdicts, write_recipe
from torch import Tensor

from flagrelease import cli

pytestmark = pytest.mark.slow

# Random weights: how far a BF16 release is from the native run says nothing, so its limits hold whatever comes, and the
# stage says of them that they tell nothing. What it finds is shown in tests/validate/logits/test_logits_v41.py.
NATIVE = {"mean_kl": 50, "top1_clear": 0.01, "margin": 0.5, "perplexity": 1e9}


def calm_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Layers that add little to the streams, and routers with strong biases, as the small V4 of these tests has."""
    tensors = NATIVE_TENSORS(config, seed)
    for name, tensor in tensors.items():
        if name.endswith(("wo_b.scale", "w2.scale", "engram.wkv.scale")):
            tensor.view(torch.uint8).sub_(3)
        if name.endswith(("gate.bias", "gate.bias_vl")):
            tensor.mul_(10)
    return tensors


NATIVE_TENSORS = v41_checkpoint.native_tensors


def test_a_release_is_judged_from_its_bytes_to_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v41_checkpoint, "native_tensors", calm_tensors)
    workshop = Workshop(tmp_path)
    v41_checkpoint.write_small(workshop.source)
    write_documents(tmp_path / "documents.jsonl")
    write_jsonl(workshop.data, choice_records(QUESTIONS))
    oracle = LOGITS["oracle"] | {"top1": 0.3, "top1_clear": 0.1}  # of a few tokens: their intervals are wide
    rules = recipe(workshop.source, logits=LOGITS | {"native": NATIVE, "oracle": oracle})
    rules["model"], rules["releases"] = "small-v41", {"ascend": {"dtype": "bf16", "layout": "hf"}}
    write_recipe(workshop.recipe, rules)
    assert cli.main(["convert", str(workshop.recipe), "--out", str(tmp_path / "releases")]) == 0
    assert cli.main(workshop.recording(workshop.baseline)) == 0
    out = tmp_path / "validated"
    cli.main(workshop.validation(workshop.release("bf16"), out))
    assert verdicts(out) == {
        "integrity": "pass", "weights": "pass", "logits": "not-informative", "benchmarks": "not-informative",
        "behaviour": "not-informative",
    }  # fmt: skip

"""Whole validations of two chips by the real engine: twice, under other rules, with another baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from night_runs import THREE, run, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TWO = {chip: THREE[chip] for chip in ("ascend", "mthreads")}


def test_two_chips_are_validated_once_and_what_changed_is_validated_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = {"documents": 2, "tokens": 16, "long_tokens": 16, "decode_tokens": 2}
    behaviour = {"prompts": 1, "repeats": 1, "max_tokens": 4, "margin": 99}
    wide = {"mean_kl": 9, "top1_clear": 0.01, "margin": 0.01, "perplexity": 9}
    logits = {
        "replay": replay,
        "min_documents": 2,
        "min_tokens": 2,
        "min_decode_tokens": 1,
        "oracle": wide,
        "native": dict(wide),
        "continuations": {"writing": {"documents": 2, "prompt_tokens": 4, "tokens": 4}, "min_tokens": 1},
    }
    rules = {"stages": ["integrity", "weights", "behaviour"], "device": "any", "behaviour": behaviour, "logits": logits}
    texts = [{"name": f"t{n}", "kind": "short", "text": f"Ledger: cloud blaze {n}2 marsh quail 65"} for n in (4, 5)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    words = ("--device", "cpu", "--documents", tmp_path / "texts.jsonl")
    out = tmp_path / "out"

    def once(**changed: object) -> dict[str, str]:
        recipe = write_recipe(tmp_path, TWO, validation=rules | changed)
        ran = run(capsys, recipe, out, *words)
        assert ran.code == 0, [one["steps"]["validate"]["detail"] for one in ran.document["chips"]]
        return ran.why

    def outcome(stage: str) -> int:
        return (out / "validation" / "bf16-hf-ascend" / "state" / f"{stage}.json").stat().st_mtime_ns

    assert set(once()) == {f"{chip} {stage}" for chip in TWO for stage in ("convert", "verify", "validate")}
    baseline = (out / "baseline" / "behaviour.json").read_bytes()
    assert once() == {}
    changed = once(behaviour=behaviour | {"max_tokens": 5})
    assert set(changed) == {"ascend validate", "mthreads validate"}
    assert "behaviour.max_tokens: 4 -> 5" in changed["ascend validate"]
    assert (out / "baseline" / "behaviour.json").read_bytes() != baseline
    assert len(list((out / "history" / "baseline").iterdir())) == 1, "the logits of the native model stay"
    behaved = outcome("behaviour")
    changed = once(behaviour=behaviour | {"max_tokens": 5}, benchmarks={})
    assert changed == {}
    widened = logits | {"min_tokens": 1}
    changed = once(behaviour=behaviour | {"max_tokens": 5}, logits=widened)
    assert "logits.min_tokens: 2 -> 1" in changed["ascend validate"]
    state = json.loads((out / "validation" / "bf16-hf-ascend" / "state" / "behaviour.json").read_bytes())
    assert (state["stage"]["verdict"], outcome("behaviour") != behaved) == ("pass", True), "taken over, not asked again"
    assert not (out / "validation" / "bf16-hf-ascend" / "work" / "behaviour").exists()
    assert once(behaviour=behaviour | {"max_tokens": 5}, logits=widened) == {}

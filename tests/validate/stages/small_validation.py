"""A small source with its releases, a recipe that says how they are judged, and the command line that judges them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from defective_ports import CalmCheckpoint, write_documents
from engine_checkpoint import small_config
from scripted_exam import CHOICE_PROMPT, choice_records, write_jsonl
from small_tokenizer import write_tokenizer

from flagrelease import cli

GOLDEN = Path(__file__).parents[2] / "golden" / "encoding"
QUESTIONS = 4
# The model of these tests knows nothing, natively too: what asks it questions runs, and tells nothing.
PASSED = dict.fromkeys(("integrity", "weights", "logits"), "pass")
PASSED |= dict.fromkeys(("benchmarks", "behaviour"), "not-informative")
# The least that runs every part: what the limits are worth is shown by the tests of the logits stage. mean_kl is twice
# what these random weights need: 0 in BF16, and 0.024 in FP8 (of twice mean_kl) since native numerics round the norm of
# query heads to BF16.
LOGITS: dict[str, Any] = {
    "replay": {
        "documents": 4, "tokens": 40, "long_tokens": 40, "decode_tokens": 4, "chunk": 32, "floor_chunk": 20,
        "floor_rows": 2, "layer_positions": 2,
    },
    "oracle": {
        "mean_kl": 0.024, "floors": 3, "tail_kl": 0.1, "tail_share": 0.5, "top1": 0.6, "top1_clear": 0.6,
        "margin": 0.5, "perplexity": 0.2,
    },
    "native": {"mean_kl": 0.3, "top1_clear": 0.3, "margin": 0.5, "perplexity": 0.2},
    "layers": {"last_error": 0.2, "early_cosine": 0.98, "late_cosine": 0.97, "experts": 0.8},
    "rounded": 2, "min_documents": 4, "min_tokens": 100, "min_decode_tokens": 10,
    "continuations": {
        "writing": {"documents": 2, "prompt_tokens": 8, "tokens": 6}, "most": 0.6, "min_tokens": 2,
    },
}  # fmt: skip


def recipe(source: Path, **validation: Any) -> dict[str, Any]:
    """The model knows no words: both sides answer noise, so benchmarks and behaviour run and tell nothing."""
    rules = {
        "device": "any",
        "preflight": None,  # the servers of these tests are stand-ins that answer benchmarks
        "invariance": None,
        "stages": ["integrity", "weights", "logits"],
        "logits": LOGITS,
        "benchmarks": {
            "choices": {
                "title": "Choices", "kind": "multiple-choice", "dataset": "someone/choices", "files": ["choices.jsonl"],
                "revision": "main", "prompt": CHOICE_PROMPT, "mode": "chat", "max_tokens": 4, "margin": 30,
                "repeats": 4, "extension": 1, "most_invalid": 100, "most_truncated": 100,
            }
        },
        "behaviour": {"prompts": 1, "repeats": 4, "max_tokens": 4, "margin": 90},
    }  # fmt: skip
    return {
        "schema_version": 1,
        "model": "small-v4",
        "source": {"repo": "someone/small-v4", "revision": "r1", "license": "MIT", "path": str(source)},
        "releases": {
            "ascend": {"dtype": "bf16", "layout": "hf"},
            "mthreads": {"dtype": "fp8", "layout": "hf"},
        },
        "validation": rules | validation,
    }


@dataclass(frozen=True)
class Workshop:
    """Where everything is."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def baseline(self) -> Path:
        return self.folder / "baseline"

    @property
    def data(self) -> Path:
        return self.folder / "choices.jsonl"

    def release(self, dtype: str) -> Path:
        return self.folder / "releases" / f"{dtype}-hf"

    def recording(self, out: Path, *more: str) -> list[str]:
        given = ["--recipe", str(self.recipe), "--data", f"choices={self.data}", "--device", "cpu"]
        documents = ["--documents", str(self.folder / "documents.jsonl")]
        return ["baseline", "record", str(self.source), "--out", str(out), *given, *documents, *more]

    def validation(self, release: Path, out: Path, *more: str, chip: str = "ascend") -> list[str]:
        given = ["--recipe", str(self.recipe), "--source", str(self.source), "--baseline", str(self.baseline)]
        asked = ["--data", f"choices={self.data}", "--device", "cpu", "--out", str(out)]
        return ["validate", str(release), "--chip", chip, *given, *asked, *more]


def build(folder: Path) -> Workshop:
    """Source, recipe, data, documents and both releases; the baseline is recorded by the caller."""
    workshop = Workshop(folder)
    CalmCheckpoint(small_config(), seed=5).write_hf(workshop.source, "native")
    write_tokenizer(workshop.source)
    shutil.copytree(GOLDEN, workshop.source / "encoding" / "tests")
    write_documents(folder / "documents.jsonl")
    write_jsonl(workshop.data, choice_records(QUESTIONS))
    write_recipe(workshop.recipe, recipe(workshop.source))
    assert cli.main(["convert", str(workshop.recipe), "--out", str(folder / "releases")]) == 0
    return workshop


def write_recipe(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def read_report(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_bytes())
    return report


def verdicts(out: Path) -> dict[str, str]:
    """Of the stages that every recipe has run; the others need rules or an endpoint of their own: none has any here."""
    found = {stage["name"]: stage["verdict"] for stage in read_report(out)["stages"]}
    shown = ("integrity", "weights", "logits", "benchmarks", "behaviour")
    assert all(found[name] == "not-run" for name in found.keys() - set(shown))
    return {name: found[name] for name in shown}


def stage_of(out: Path, name: str) -> dict[str, Any]:
    (stage,) = (stage for stage in read_report(out)["stages"] if stage["name"] == name)
    return dict(stage)

"""The four public faults against all stages, over an endpoint, on the trained model: docs/validation-defects.md.

Slow: about ten minutes of one core. What each stage says of each fault is fixed here and in the page's table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import yaml
from engine_on_loopback import NAME, Start, serving
from public_faults import with_stale_indexer, without_state_at_borders, without_swiglu_limit

from flagrelease import cli, engine
from flagrelease.chips.table import get_chip
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.v4.model import Model
from flagrelease.errors import VerificationError
from flagrelease.records.recipe import read_recipe
from flagrelease.records.release import read_release
from flagrelease.records.report import Stage
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.invariance.figures import InvarianceFigures
from flagrelease.validate.stages.model_stages import StageInputs
from flagrelease.validate.stages.preconditions import prepare, with_all_questions
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.run import _runners

ROOT = Path(__file__).parents[3]
TINY = ROOT / "examples" / "tiny"
CHECKPOINT = TINY / "flagrelease-tiny-v4"
sys.path.insert(0, str(TINY))

import documents  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ITEMS = 4


@dataclass(frozen=True)
class Study:
    folder: Path
    model: Model

    @property
    def release(self) -> Path:
        return self.folder / "releases" / "bf16-hf"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def request(self, out: Path, url: str, sound: str, items: str = "integers") -> ValidationRequest:
        return ValidationRequest(
            release=read_release(self.release), chip=get_chip("ascend"), rules=read_recipe(self.recipe).validation,
            out=out, baseline=self.folder / "baseline", data={"integers": (self.folder / f"{items}.jsonl",)},
            endpoint=Endpoint(url, NAME, concurrency=4), variants={"sound": Endpoint(sound, NAME)}, device="cpu",
        )  # fmt: skip


def rules() -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / "tiny.yaml").read_text())
    recipe["source"]["path"] = str(CHECKPOINT)
    recipe["releases"] = {"ascend": {"format": "bf16", "layout": "hf"}}
    validation = recipe["validation"]
    validation["logits"] |= {"min_documents": 6, "min_tokens": 500, "min_decode_tokens": 40}
    validation["logits"]["continuations"] = {"min_tokens": 4}
    validation["logits"]["replay"] |= {"documents": 6, "decode_tokens": 8}
    validation["logits"]["oracle"] |= {"tail_share": 0.05, "top1": 0.9, "top1_clear": 0.95, "perplexity": 0.02}
    validation["logits"]["native"] |= {"mean_kl": 0.1, "top1_clear": 0.9, "perplexity": 0.2}
    validation["invariance"] |= {"texts": 1, "lengths": [60, 128], "max_tokens": 20}
    validation["long_context"] = {"form": "ledger", "lengths": [80, 128], "depths": [0, 50, 100], "items": 4,
                                  "max_tokens": 32, "margin": 25}  # fmt: skip
    del validation["benchmarks"]["choices"]
    validation["benchmarks"]["integers"] |= {"margin": 40, "repeats": 4, "extension": 1, "max_tokens": 32}
    validation["behaviour"] |= {"prompts": 2, "repeats": 4, "margin": 80, "max_tokens": 16}
    return recipe


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("faults")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(rules()))
    lines = (TINY / "tasks" / "integers_year1.jsonl").read_text().splitlines()
    for name, count in (("integers", ITEMS), ("subset", ITEMS // 2)):
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:count]) + "\n")
    texts = [json.dumps(document) for document in documents.documents(2)]
    (folder / "documents.jsonl").write_text("\n".join(texts) + "\n")
    assert cli.main(["convert", str(folder / "recipe.yaml"), "--out", str(folder / "releases")]) == 0
    given = ["--recipe", str(folder / "recipe.yaml"), "--data", f"integers={folder / 'integers.jsonl'}"]
    words = ["baseline", "record", str(CHECKPOINT), "--out", str(folder / "baseline"), *given, "--device", "cpu"]
    assert cli.main([*words, "--documents", str(folder / "documents.jsonl")]) == 0
    return Study(folder, engine.load(folder / "releases" / "bf16-hf", "bf16", torch.float32))


@contextmanager
def answers_cut_short() -> Iterator[None]:
    """Something between the user and the model caps max_tokens and says nothing."""
    samplings = ChatRequest.samplings

    def capped(self: ChatRequest, logprobs: Any, max_tokens: int | None, *rest: Any, **more: Any) -> Any:
        return samplings(self, logprobs, min(max_tokens or 6, 6), *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatRequest, "samplings", capped)
        yield


def stages_of(study: Study, name: str, spoil: Callable[[Model], Model] | None) -> dict[str, Stage]:
    """Every stage by itself: here one that fails does not stop the others."""
    chunk = 48
    with (
        serving(study.release, study.model, Start(context=2048, chunk=chunk, spoil=spoil)) as url,
        serving(study.release, study.model, Start(context=2048, chunk=chunk)) as sound,
    ):
        ready = with_all_questions(prepare(study.request(study.folder / f"out-{name}", url, sound)))
        found: dict[str, Stage] = {}
        for runner in _runners(StageInputs(ready, "the endpoint is asked")):
            if runner.missing() is None:
                before = spent(url)
                found[runner.name] = runner.run(lambda what, done, total, unit: None).stage
                print(name, runner.name, [now - then for now, then in zip(spent(url), before, strict=True)])
    return found


def spent(url: str) -> tuple[int, int]:
    """Tokens of prompts, cached ones included, and of answers, that the server has had so far."""
    text = httpx2.get(url.removesuffix("/v1") + "/metrics").text
    counters = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("flagrelease_")}
    read, cached = (int(counters[f"flagrelease_{name}_total"]) for name in ("prompt_tokens", "cached_prompt_tokens"))
    return read + cached, int(counters["flagrelease_generated_tokens_total"])


def caught_by(found: dict[str, Stage]) -> set[str]:
    """Stages that fail; invariance is two, what a server says of itself and what it says beside a sound one."""
    failed = {name for name, stage in found.items() if stage.verdict == "fail"}
    rows = InvarianceFigures.model_validate(found["invariance"].figures).circumstances
    beside = [row for row in rows if row.kind == "variant" and row.verdict == "fail"]
    alone = [row for row in rows if row.kind != "variant" and row.verdict == "fail"]
    failed -= {"invariance"}
    return failed | ({"invariance"} if alone else set()) | ({"variant"} if beside else set())


# The served logits are those of prompts: a fault of steps of one token is in none of them.
FAULTS: list[tuple[str, Callable[[Model], Model] | None, set[str]]] = [
    ("none", None, set()),
    ("swiglu", without_swiglu_limit, {"logits", "variant"}),
    ("stale", with_stale_indexer, {"invariance", "variant", "long-context", "benchmarks"}),
    ("border", without_state_at_borders, {"logits", "invariance", "variant", "long-context"}),
]


@pytest.mark.parametrize(("name", "spoil", "caught"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_what_catches_which_fault(
    study: Study, name: str, spoil: Callable[[Model], Model] | None, caught: set[str]
) -> None:
    found = stages_of(study, name, spoil)
    print(name, {stage: (each.verdict, each.detail) for stage, each in found.items()})
    assert caught_by(found) == caught


def test_truncated_answers_are_no_score(study: Study) -> None:
    with answers_cut_short():
        found = stages_of(study, "cut", None)
    print({stage: (each.verdict, each.detail) for stage, each in found.items()})
    assert found["preflight"].verdict == "fail"
    assert "usage" in found["preflight"].detail
    assert found["benchmarks"].verdict != "pass"
    assert found["long-context"].verdict != "pass"


def test_a_subset_of_the_questions_is_refused(study: Study) -> None:
    """32 of 198 questions are not the benchmark: the native model answered others."""
    request = study.request(study.folder / "out-subset", "http://localhost:1/v1", "http://localhost:2/v1", "subset")
    with pytest.raises(VerificationError, match="questions"):
        with_all_questions(prepare(request))

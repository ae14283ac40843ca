"""The public faults of ports, one at a time in a small random model: a server that has one disagrees with itself.

docs/validation-defects.md has all of them against all stages, on the trained model (test_public_fault_matrix.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, small_config
from engine_on_loopback import NAME, Start, serving
from public_faults import with_stale_indexer, without_state_at_borders, without_swiglu_limit
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.v4.model import Model
from flagrelease.errors import ResourceError
from flagrelease.records.rules import InvarianceRules
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.invariance.asking import InvarianceAsker
from flagrelease.validate.invariance.figures import InvarianceFigures
from flagrelease.validate.invariance.prompts import InvariancePrompt
from flagrelease.validate.invariance.stage import invariance_stage

RULES = InvarianceRules(max_tokens=5, concurrency=(3,))
SOUND = Start(context=512, chunk=128)
# Longer than what the indexer chooses of, 16 entries of 4 tokens; the second shares a chunk with the first.
SHARED = "a register of words that every prompt begins with, " * 4
PROMPTS = [
    InvariancePrompt("first", SHARED + "and one question"),
    InvariancePrompt("second", SHARED + "another", shares=True),
    InvariancePrompt("register", "something else, as long as the indexer has to choose: " * 2, answer=1, length=100),
]


@dataclass(frozen=True)
class Port:
    release: Path
    model: Model
    work: Path

    def judge(self, start: Start, variants: Mapping[str, Start] | None = None) -> InvarianceFigures:
        with ExitStack() as stack:
            url = stack.enter_context(serving(self.release, self.model, start))
            others = {
                name: Endpoint(stack.enter_context(serving(self.release, self.model, other)), NAME)
                for name, other in (variants or {}).items()
            }
            effort = read_efforts(self.release).of("chat")
            asker = InvarianceAsker(Endpoint(url, NAME), others, effort, PROMPTS, RULES)
            heard = asker.ask(self.work / "answers.jsonl", {}, lambda done, total: None)
        return InvarianceFigures.model_validate(invariance_stage(heard, PROMPTS, RULES).figures)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer whose indexer chooses, and one of ratio 128."""
    folder = tmp_path_factory.mktemp("two-layers")
    Checkpoint(small_config(num_hidden_layers=2, compress_ratios=[4, 128, 0]), seed=1).write_hf(folder, "bf16")
    write_tokenizer(folder)
    return folder


@pytest.fixture
def port(release: Path, tmp_path: Path) -> Port:
    torch.set_num_threads(1)
    return Port(release, engine.load(release, "bf16", torch.float32, mtp=True), tmp_path)


def failed(figures: InvarianceFigures) -> list[str]:
    return [row.name for row in figures.circumstances if row.verdict == "fail"]


def test_variants_with_each_fault_are_told_from_a_sound_one(port: Port) -> None:
    found = port.judge(
        SOUND,
        {
            "chunks of 48": replace(SOUND, chunk=48),
            "speculation": replace(SOUND, speculate=True),
            "experts without limit": replace(SOUND, spoil=without_swiglu_limit),
            "stale indexer": replace(SOUND, spoil=with_stale_indexer),
            "no state at borders": replace(SOUND, chunk=48, spoil=without_state_at_borders),
        },
    )
    assert failed(found) == [
        "variant experts without limit", "variant stale indexer", "variant no state at borders",
    ]  # fmt: skip
    assert found.requests == 30


def test_a_stale_indexer_disagrees_with_itself_in_a_batch(port: Port) -> None:
    """What was recorded for one row and for three are choices of different steps."""
    assert "3 at once" in failed(port.judge(replace(SOUND, spoil=with_stale_indexer)))


def test_answers_are_kept_and_belong_to_their_prompts(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    before = port.judge(SOUND)
    kept = (port.work / "answers.jsonl").read_bytes()
    monkeypatch.setattr("flagrelease.validate.invariance.asking.ask_each", lambda *given: iter(()))
    assert port.judge(SOUND).circumstances == before.circumstances
    assert (port.work / "answers.jsonl").read_bytes() == kept
    other = InvarianceAsker(
        Endpoint("http://localhost:1/v1", NAME), {}, read_efforts(port.release).of("chat"), PROMPTS[:2], RULES
    )
    with pytest.raises(ResourceError, match="prompts"):
        other.ask(port.work / "answers.jsonl", {}, lambda done, total: None)

"""Texts of the native model as a gate: what it estimates, what it judges, and what a kill leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from defective_ports import RULES, ported, unclamped_shared_expert
from logits_study import Study
from numpy.typing import NDArray
from scipy.stats import entropy
from served_model import serving
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.records.rules import ContinuationRules, WritingRules
from flagrelease.records.source_identity import identify
from flagrelease.validate.logits.baseline import open_baseline
from flagrelease.validate.logits.continuations.gate import Gate, run_gate
from flagrelease.validate.logits.continuations.served import EndpointTexts
from flagrelease.validate.logits.continuations.stored import Continuation, Continuations, ContinuationsHead
from flagrelease.validate.logits.continuations.texts import EngineTexts, Rated, TextModel, Texts
from flagrelease.validate.logits.continuations.writing import beginnings, prompts_sha256, write_continuations
from flagrelease.validate.logits.record import read_set
from flagrelease.validate.logits.served.kept import ServedFolder
from flagrelease.validate.logits.served.server import ServedRelease

V, TEXTS, LENGTH = 50, 40, 100
Probabilities = NDArray[np.float64]


@dataclass
class Urn:
    """A 'model' that gives every token with the same probabilities, whatever came before."""

    p: Probabilities
    rated: list[str] = field(default_factory=list)
    dies_after: int = 10**9

    def write(self, prompts: Texts, seeds: Mapping[str, int], tokens: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name in prompts:
            drawn = np.random.default_rng(seeds[name]).choice(len(self.p), size=tokens, p=self.p)
            yield name, tuple(int(token) for token in drawn)

    def rate(self, texts: Texts) -> Iterator[Rated]:
        for name, tokens in texts.items():
            if len(self.rated) == self.dies_after:
                raise KeyboardInterrupt
            self.rated.append(name)
            yield Rated(name, tuple(float(x) for x in np.log(self.p[list(tokens[1:])])))


def head(rules: WritingRules) -> ContinuationsHead:
    return ContinuationsHead(subject="source 1", stack="an urn", documents_sha256="0" * 64, rules=rules)


@pytest.fixture(scope="module")
def urn() -> Urn:
    return Urn(np.random.default_rng(1).dirichlet(np.ones(V)))


@pytest.fixture(scope="module")
def texts(urn: Urn, tmp_path_factory: pytest.TempPathFactory) -> Continuations:
    writing = WritingRules(documents=TEXTS, prompt_tokens=1, tokens=LENGTH)
    prompts = {f"text {n}": (0,) for n in range(TEXTS)}
    journal = tmp_path_factory.mktemp("writing") / "journal.jsonl"
    return write_continuations(urn, prompts, head(writing), journal, lambda done, total: None)


def moved(urn: Urn, noise: float) -> Probabilities:
    made = urn.p * np.exp(noise * np.random.default_rng(2).normal(size=V))
    return np.asarray(made / made.sum())


def gate(texts: Continuations, model: TextModel, folder: Path, most: float = 0.03, least: int = 2048) -> Gate:
    limits = RULES.model_copy(update={"continuations": ContinuationRules(most=most, min_tokens=least)})
    return run_gate(model, texts, limits, V, folder / "scores.jsonl", {"port": "1"}, lambda done, total: None)


def of(found: Gate) -> dict[str, dict[str, float]]:
    return {str(measure["name"]): measure for measure in found.figures.measures}  # type: ignore[misc]


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6])
def test_both_measures_estimate_kl_over_the_whole_vocabulary(
    urn: Urn, texts: Continuations, tmp_path: Path, noise: float
) -> None:
    q = moved(urn, noise)
    found, whole = of(gate(texts, Urn(q), tmp_path)), float(entropy(urn.p, q))
    for name in ("nll", "sampled_kl"):
        assert found[name]["low"] - 0.01 <= whole <= found[name]["high"] + 0.01
    assert abs(found["sampled_kl"]["value"] - whole) <= abs(found["nll"]["value"] - whole) + 0.01


def test_verdicts(urn: Urn, texts: Continuations, tmp_path: Path) -> None:
    for number, (noise, most, least, verdict) in enumerate(
        [
            (0.05, 0.03, 2048, "pass"),
            (0.6, 0.03, 2048, "fail"),
            (0.24, 0.03, 2048, "cannot-tell"),
            (0.05, 0.03, 10**6, "cannot-tell"),  # too little
            (0.05, 5.0, 2048, "not-informative"),  # equal probabilities would hold that, too
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = gate(texts, Urn(moved(urn, noise)), folder, most, least)
        assert found.verdict == verdict, (noise, most, found.said)
        alone = found.alone("Nothing longer was run.")
        assert alone.verdict == ("fail" if verdict == "fail" else "cannot-tell"), "the gate alone is no pass"


def test_a_killed_gate_scores_the_rest(urn: Urn, texts: Continuations, tmp_path: Path) -> None:
    q = moved(urn, 0.2)
    with pytest.raises(KeyboardInterrupt):
        gate(texts, Urn(q, dies_after=15), tmp_path)
    rest = Urn(q)
    found = gate(texts, rest, tmp_path)
    assert len(rest.rated) == TEXTS - 15
    (tmp_path / "whole").mkdir()
    assert found == gate(texts, Urn(q), tmp_path / "whole")
    limits = RULES.model_copy(update={"continuations": ContinuationRules()})
    with pytest.raises(ResourceError, match="port"):
        run_gate(rest, texts, limits, V, tmp_path / "scores.jsonl", {"port": "2"}, lambda done, total: None)


def test_writing_goes_on_after_a_kill_and_the_file_comes_back(urn: Urn, texts: Continuations, tmp_path: Path) -> None:
    prompts = {f"text {n}": (0,) for n in range(TEXTS)}
    journal = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_continuations(Urn(urn.p, dies_after=7), prompts, head(texts.rules), journal, lambda done, total: None)
    seen: list[tuple[int, int]] = []
    rest = Urn(urn.p)
    made = write_continuations(rest, prompts, head(texts.rules), journal, lambda *step: seen.append(step))
    assert (len(rest.rated), seen[-1]) == (TEXTS - 7, (2 * TEXTS, 2 * TEXTS))
    assert made == texts
    made.save(tmp_path / "continuations.json")
    assert Continuations.read(tmp_path / "continuations.json") == texts


def test_what_cannot_be_scored_is_named_and_what_is_no_number_fails(texts: Continuations, tmp_path: Path) -> None:
    class Odd(Urn):
        def rate(self, texts: Texts) -> Iterator[Rated]:
            for number, rated in enumerate(super().rate(texts)):
                assert not isinstance(rated.logp, str)
                yield [Rated(rated.name, "other tokens"), Rated(rated.name, (*rated.logp[:-1], float("nan"))), rated][
                    min(number, 2)
                ]

    found = gate(texts, Odd(np.full(V, 1 / V)), tmp_path)
    assert found.figures.refused[0].reason == "other tokens"
    assert of(found)["nonfinite"]["value"] == 1
    assert found.verdict == "fail"
    assert "Not scored: 1, the first is text 0: other tokens" in found.said


def test_a_native_model_without_numbers_is_refused(tmp_path: Path) -> None:
    class Broken(Urn):
        def rate(self, texts: Texts) -> Iterator[Rated]:
            yield Rated("one", (float("inf"), 0.0))

    with pytest.raises(CheckpointError, match="'one': its continuation cannot be scored: log-probabilities are NaN"):
        write_continuations(
            Broken(np.full(V, 1 / V)), {"one": (0,)}, head(WritingRules(tokens=2)), tmp_path / "journal.jsonl",
            lambda done, total: None,
        )  # fmt: skip
    with pytest.raises(ValueError, match="1 log-probabilities for 2 tokens"):
        Continuation(name="one", prompt=(0,), answer=(1, 2), logp=(-1.0,))


# the engine and a server

WRITING = WritingRules(documents=4, prompt_tokens=12, tokens=10)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def on_engine(model: Model, tokenizer: Tokenizer) -> EngineTexts:
    return EngineTexts(Scheduler(Runner(model, rows=4, context=80), tokenizer))


@pytest.fixture(scope="module")
def written(study: Study, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Continuations:
    native = on_engine(engine.load(study.source, "native"), tokenizer)
    _, documents = read_set(study.source, study.documents, RULES.replay)
    prompts = beginnings(documents, WRITING)
    made = head(WRITING).model_copy(update={"documents_sha256": prompts_sha256(prompts)})
    journal = tmp_path_factory.mktemp("written") / "journal.jsonl"
    return write_continuations(native, prompts, made, journal, lambda done, total: None)


def test_the_engine_scores_as_the_documents_are_scored(study: Study, tokenizer: Tokenizer) -> None:
    """Against the oracle's prefill run in the baseline, which goes another way through the engine."""
    _, documents = read_set(study.source, study.documents, RULES.replay)
    opened = open_baseline(study.baseline, identify(study.release), RULES.replay)
    asked = {document.name: document.tokens for document in documents[:2]}
    for number, rated in enumerate(sorted(on_engine(study.model, tokenizer).rate(asked), key=lambda each: each.name)):
        np.testing.assert_allclose(rated.logp, opened.kept("oracle", number)["prefill"].target, atol=0.05)


def test_a_sound_port_passes_and_a_defective_one_fails_on_the_engine_and_over_a_server(
    study: Study, tokenizer: Tokenizer, written: Continuations, tmp_path: Path
) -> None:
    """The port rounds no activations: its distance from the native run is 0.03 nats (docs/validation-defects.md)."""
    limits = RULES.model_copy(update={"continuations": ContinuationRules(writing=WRITING, most=0.3, min_tokens=20)})

    def judged(model: TextModel, name: str) -> Gate:
        return run_gate(model, written, limits, 320, tmp_path / f"{name}.jsonl", {}, lambda done, total: None)

    sound = judged(on_engine(ported(study.model, None), tokenizer), "sound")
    assert sound.verdict == "pass", sound.said
    wrong = ported(study.model, unclamped_shared_expert)
    assert judged(on_engine(wrong, tokenizer), "wrong").verdict == "fail"
    with serving(ported(study.model, None), tmp_path) as endpoint:
        server = ServedRelease(study.release, endpoint)
        way = server.way(ServedFolder(tmp_path), server.prompt(0, written.texts[0].tokens), 1)
        assert not isinstance(way, str)
        over = judged(EndpointTexts(server, way), "served")
        for ours, theirs in zip(over.figures.texts, sound.figures.texts, strict=True):
            assert (ours.name, ours.tokens) == (theirs.name, theirs.tokens)
            assert ours.port == pytest.approx(theirs.port, abs=0.02)
        prompts = {text.name: text.prompt for text in written.texts[:2]}
        for _, tokens in EndpointTexts(server, way).write(prompts, dict.fromkeys(prompts, 1), 5):
            assert 1 <= len(tokens) <= 5
    assert over.figures.costs.requests == 4
    assert over.figures.costs.seconds > 0

"""The logits stage over an endpoint: this project's server on loopback, sound, defective, and others that cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from defective_ports import RULES, ported, unclamped_shared_expert
from endpoint_standin import Answer, Standin
from logits_study import Study
from served_model import NAME, serving
from small_tokenizer import write_tokenizer

from flagrelease.engine.text import Tokenizer
from flagrelease.errors import ResourceError
from flagrelease.records.report import Stage
from flagrelease.records.rules import ServedRules
from flagrelease.records.source_identity import identify
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.logits.baseline import open_with_documents
from flagrelease.validate.logits.served.bounds import NOTHING
from flagrelease.validate.logits.served.evaluation import visible_share
from flagrelease.validate.logits.served.names import TokenNames
from flagrelease.validate.logits.served.reading import PromptScores
from flagrelease.validate.logits.served.server import ServedRelease
from flagrelease.validate.logits.served.stage import run_served
from flagrelease.validate.logits.served.ways import WAYS, Prompt, Scored, Way, score_each

LENGTHS = 9 * 72 + 160
SCORED = LENGTHS - 10  # nothing precedes the first tokens


@pytest.fixture(scope="module")
def sound(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with serving(ported(study.model, None), tmp_path_factory.mktemp("served")) as endpoint:
        yield endpoint


def run(study: Study, endpoint: Endpoint, work: Path, **more: Any) -> Stage:
    return run_served(ServedRelease(study.release, endpoint), study.baseline, RULES, work, **more)


@pytest.fixture(scope="module")
def passed(study: Study, sound: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return run(study, sound, tmp_path_factory.mktemp("run") / "work")


def test_a_sound_server_passes_and_the_report_says_how_far_its_lists_reach(passed: Stage) -> None:
    assert (passed.name, passed.verdict) == ("logits", "pass"), passed.detail
    served = passed.figures["served"]
    assert (served["way"], served["alternatives"], served["documents"]) == ("prompt-logprobs", 20, 10)
    assert (served["costs"]["requests"], served["costs"]["tokens"]) == (10, LENGTHS)
    assert served["costs"]["seconds"] > 0
    by_reference = {bounds["reference"]: bounds for bounds in served["bounds"]}
    # docs/validation-defects.md has the distances of this model whose lists are whole: 7.7e-5 and 2.9e-2
    assert by_reference["oracle"]["shown"] < 7.7e-5 < 3 * by_reference["oracle"]["inferred"]
    assert by_reference["native"]["shown"] < 2.9e-2 == pytest.approx(by_reference["native"]["inferred"], rel=0.1)
    for bounds in by_reference.values():
        assert 0.5 < bounds["share"] < 0.9
        assert bounds["bounded"] == 0
        assert bounds["least_variation"] < bounds["most_variation"] < bounds["unlisted"] + 0.1
    assert {c["replay"] for c in passed.figures["comparisons"]} == {"served"}
    assert all(c["tokens"] == SCORED for c in passed.figures["comparisons"])
    left = " ".join(passed.leaves_open)
    for what in ("Decoding", "no upper bound", "Layers", "this very release"):
        assert what in left


def test_a_defect_of_the_server_fails_by_the_lower_bound(study: Study, tmp_path: Path) -> None:
    with serving(ported(study.model, unclamped_shared_expert), tmp_path) as endpoint:
        stage = run(study, endpoint, tmp_path / "work")
    assert stage.verdict == "fail"
    assert {"oracle/served: mean_kl", "oracle/served: top1"} <= set(stage.figures["broken"])


def test_every_way_of_asking_gives_the_same_numbers(sound: Endpoint, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    text = "1 apple: 3 coins"
    tokens = (0, *tokenizer.encode(text))
    prompt = Prompt(0, tokens, tokenizer.decode(tokens), text)
    names = TokenNames(tokenizer, 320)
    found = {}
    for name in WAYS:
        (scored,) = score_each(sound, Way(name=name, alternatives=20), [prompt], names)
        found[name] = scored.scores
    first = found.pop("prompt-logprobs")
    # this server adds no begin of sentence: it then reads a text that is not the document, and the tokens tell
    assert "the server did not read the same tokens" in str(found.pop("echo-text-bos"))
    assert not isinstance(first, str)
    for name, scores in found.items():
        assert not isinstance(scores, str), (name, scores)
        assert scores.first == first.first == 1
        np.testing.assert_allclose(scores.listed.target, first.listed.target, atol=1e-6)
        for ours, theirs in zip(as_mappings(scores), as_mappings(first), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)


def as_mappings(scores: PromptScores) -> list[dict[int, float]]:
    """Whatever the order in which alternatives came."""
    rows = zip(scores.listed.ids.tolist(), scores.listed.logq.tolist(), strict=True)
    return [{one: logq for one, logq in zip(ids, values, strict=True) if one != NOTHING} for ids, values in rows]


def test_a_killed_run_asks_for_the_rest_and_gives_the_same_stage(
    study: Study, sound: Endpoint, passed: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = ServedRelease.score
    asked: list[int] = []

    def until_killed(server: ServedRelease, way: Way, prompts: Sequence[Prompt]) -> Iterator[Scored]:
        for scored in score(server, way, prompts):
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append(scored.prompt.number)
            yield scored

    monkeypatch.setattr(ServedRelease, "score", until_killed)
    with pytest.raises(KeyboardInterrupt):
        run(study, sound, tmp_path / "work")
    monkeypatch.setattr(ServedRelease, "score", score)
    seen: list[tuple[int, int]] = []
    stage = run(study, sound, tmp_path / "work", progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 7
    assert seen[-1] == (LENGTHS, LENGTHS)
    assert without_costs(stage) == without_costs(passed)
    with pytest.raises(ResourceError, match="another server"):
        run(study, replace(sound, model="other"), tmp_path / "work")


def without_costs(stage: Stage) -> dict[str, Any]:
    document = stage.model_dump(mode="json")
    document["figures"]["served"].pop("costs")
    return document


def test_documents_beyond_the_servers_context_are_cut_and_named(study: Study, tmp_path: Path) -> None:
    with serving(ported(study.model, None), tmp_path, context=60) as endpoint:
        stage = run(study, endpoint, tmp_path / "work")
    assert len(stage.figures["served"]["cut"]) == 10
    assert {c["tokens"] for c in stage.figures["comparisons"]} == {10 * 58}
    assert stage.verdict == "cannot-tell"
    assert "580 tokens of 700" in stage.detail
    assert "The ends of documents" in stage.leaves_open[-1]


def test_a_short_list_that_shows_too_little_is_no_pass(study: Study, sound: Endpoint, tmp_path: Path) -> None:
    rules = RULES.model_copy(update={"served": ServedRules(alternatives=1)})
    stage = run_served(ServedRelease(study.release, sound), study.baseline, rules, tmp_path / "work")
    assert stage.figures["served"]["alternatives"] == 1
    assert stage.verdict == "cannot-tell"
    assert "not told by so few alternatives" in stage.detail
    assert all(bounds["share"] < 0.5 for bounds in stage.figures["served"]["bounds"])


def plain_completion(request: dict[str, Any]) -> Answer:
    """Of a server that writes and takes no notice of fields that it does not know."""
    if "prompt_logprobs" in request:
        return Answer(400, {"error": {"message": "unknown", "param": "prompt_logprobs"}})
    choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}
    return Answer(document={"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})


def test_a_server_without_log_probabilities_of_prompts_is_said_to_have_none(study: Study, tmp_path: Path) -> None:
    models = Answer(document={"object": "list", "data": [{"id": NAME, "object": "model"}]})
    with Standin(plain_completion, {"/v1/models": models}) as standin:
        stage = run(study, Endpoint(standin.url, NAME), tmp_path / "work")
    assert stage.verdict == "not-run"
    assert stage.detail == (
        f"Not run: the server at {standin.url} gives no log-probabilities of prompts (prompt-logprobs: HTTP 400 "
        "(prompt_logprobs); echo-ids: the reply has no logprobs; echo-names: the release has no tokenizer.json to name "
        "tokens by; echo-text: the release has no tokenizer.json to name tokens by; echo-text-bos: the release has no "
        "tokenizer.json to name tokens by)."
    )


def test_what_lists_show_grows_with_their_length(study: Study) -> None:
    opened, documents = open_with_documents(study.baseline, study.release, identify(study.release), RULES.replay)
    shares = [visible_share(opened, "oracle", documents, count) for count in (1, 5, 20, 320)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[0] < 0.5

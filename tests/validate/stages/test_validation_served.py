"""`validate --endpoint`: the pre-flight ends a validation before it costs hours; variants on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from acting_server import NAME, acting
from endpoint_standin import Answer, Standin, completion
from small_validation import Workshop, read_report, recipe, stage_of, write_recipe

from flagrelease import cli
from flagrelease.errors import UsageError
from flagrelease.validate.commands import parse_variants
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.preflight.check import CHECKS
from flagrelease.validate.stages.asking import stack_of


def test_a_failing_preflight_ends_the_validation_with_the_line_to_fix(
    workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server has the efforts of 0731 and a context that no model of this release can see."""
    release, out = workshop.release("bf16"), tmp_path / "out"
    path = write_recipe(tmp_path / "r.yaml", recipe(workshop.source, preflight={}))
    with acting(release) as url:
        asked = ["--recipe", str(path), "--endpoint", url, "--model", NAME]
        assert cli.main(workshop.validation(release, out, *asked)) == 5
        assert not (out / "state/preflight.json").exists(), "a server that was mended is asked again"
    found = stage_of(out, "preflight")
    assert found["verdict"] == "fail"
    assert found["detail"].startswith("context: 8,000 tokens; expected: 512 tokens (reasoning) to 4,096 (config.json).")
    assert "flagrelease: --context N" in found["detail"]
    assert found["detail"].endswith("Also failed: prompt-tokens, efforts.")
    behind = [stage_of(out, name)["detail"] for name in ("logits", "invariance", "benchmarks", "behaviour")]
    assert set(behind) == {"Not run: the stage preflight failed."}
    assert "--context" in capfd.readouterr().out
    assert (out / "report.html").read_text(encoding="utf-8").count('<li class="t-') == len(CHECKS)
    assert read_report(out)["commands"][0].endswith(f"--endpoint {url} --model {NAME} --device cpu")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            Answer(document={"choices": completion("A").document["choices"]}),
            "a chat completion with one choice and its usage",
        ),
        (Answer(content=b"<html>"), "JSON"),
    ],
)
def test_a_server_whose_answers_cannot_be_read_fails_one_check(
    workshop: Workshop, tmp_path: Path, answer: Answer, said: str
) -> None:
    """Not even where the rules accept that check: nothing else was seen then."""
    release, out = workshop.release("bf16"), tmp_path / "out"
    path = write_recipe(
        tmp_path / "r.yaml", recipe(workshop.source, preflight={"accepted": {"usage": "counts nothing"}})
    )
    with Standin(lambda request: answer) as standin:
        asked = ["--recipe", str(path), "--endpoint", standin.url, "--model", NAME]
        assert cli.main(workshop.validation(release, out, *asked)) == 5
    found = stage_of(out, "preflight")
    assert found["verdict"] == "fail"
    assert found["detail"].startswith(f"usage: the reply is not {said}; expected: ")
    assert "vllm: remove what rewrites answers" in found["detail"]
    assert found["leaves_open"][-1].startswith("Not checked, since no answer could be read: identity, context, ")
    assert stage_of(out, "benchmarks")["detail"] == "Not run: the stage preflight failed."


def test_variants_are_named_and_asked_as_the_endpoint_is() -> None:
    main = Endpoint("http://localhost:1/v1", "m", "template")
    found = parse_variants(["eager=http://localhost:2/v1", "chunk=https://there/v1"], main)
    assert {name: (each.url, each.model, each.dialect) for name, each in found.items()} == {
        "eager": ("http://localhost:2/v1", "m", "template"), "chunk": ("https://there/v1", "m", "template"),
    }  # fmt: skip


def test_answers_in_another_dialect_are_not_taken_for_those_of_this_one() -> None:
    """Journals and finished stages are bound to it: half the answers would think, and the other half would not."""
    deepseek = Endpoint("http://localhost:1/v1", "m")
    assert stack_of(deepseek) == "m at http://localhost:1/v1"
    assert stack_of(replace(deepseek, dialect="template")) == "m at http://localhost:1/v1, --dialect template"


@pytest.mark.parametrize(
    ("words", "endpoint", "said"),
    [
        (["http://localhost:2/v1"], True, "NAME=URL is expected"),
        (["a=http://localhost:2/v1", "a=http://localhost:3/v1"], True, "given twice"),
        (["a=http://localhost:1/v1/"], True, "has the address of --endpoint"),
        (["a=http://localhost:2/v1", "b=http://localhost:2/v1"], True, "has the address of --variant a"),
        (["a=http://localhost:2/v1"], False, "belongs to --endpoint"),
        (["a=localhost:2"], True, "an http or https address is expected"),
        (["a=http://user:secret@localhost:2/v1"], True, "user and a password in the address are refused"),
    ],
)
def test_variants_that_cannot_be_asked_are_refused(words: list[str], endpoint: bool, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refusal:
        parse_variants(words, Endpoint("http://localhost:1/v1", "m") if endpoint else None)
    assert "secret" not in str(refusal.value)


def test_a_key_is_not_sent_to_a_variant_on_plain_http() -> None:
    main = Endpoint("https://there/v1", "m", key_variable="KEY")
    with pytest.raises(UsageError, match="plain http to another machine"):
        parse_variants(["a=http://elsewhere/v1"], main)

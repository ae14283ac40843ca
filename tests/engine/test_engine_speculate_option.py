"""`--speculate auto|off|N`: what is refused, what is said, and that no answer depends on it, resumed ones included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from engine_checkpoint import Checkpoint
from small_tokenizer import write_tokenizer
from typer.testing import CliRunner

from flagrelease.engine.commands import register
from flagrelease.engine.session import Session
from flagrelease.engine.speculation import Speculation, choose_speculation
from flagrelease.errors import UsageError
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint

REFERENCE = ["--numerics", "bf16", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    return app


@pytest.fixture(scope="module")
def release(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint.write_hf(tmp_path_factory.mktemp("release"), "bf16")
    write_tokenizer(folder)
    return folder


def run(app: typer.Typer, *words: Any) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_how_much_is_drafted_is_checked_before_anything_is_read(
    app: typer.Typer, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "open", lambda *_, **__: pytest.fail("the model was loaded first"))
    asked = ["--prompt", "x", *REFERENCE]
    with pytest.raises(UsageError, match="--speculate yes: auto, off or a number of drafts is expected"):
        run(app, "generate", release, *asked, "--speculate", "yes")
    with pytest.raises(UsageError, match="--speculate 0: auto, off or a number"):
        run(app, "serve", release, "--speculate", 0, *REFERENCE)
    with pytest.raises(UsageError, match="--speculate 2: 1 a step is the most, for the release holds one MTP stage"):
        run(app, "generate", release, *asked, "--speculate", 2)
    bare = tmp_path / "bare"
    write_checkpoint(bare, tiny_config(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128]))
    with pytest.raises(UsageError, match="--speculate 1: no drafts can be made, for the release holds no draft stages"):
        run(app, "serve", bare, "--speculate", 1, *REFERENCE)
    assert choose_speculation("auto", bare) == Speculation(
        0, False, "drafts: none, as the release holds no draft stages"
    )
    two = tmp_path / "two"
    write_checkpoint(two, tiny_config(num_nextn_predict_layers=2, compress_ratios=[0, 4, 128, 0, 0]))
    assert choose_speculation("auto", two).said.endswith("2 MTP stages, of which the engine runs only a single one")


def test_auto_on_a_release_without_draft_stages_answers_and_says_so(app: typer.Typer, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128]))
    write_tokenizer(tmp_path)
    words = ["generate", tmp_path, "--prompt", "Hi", "--mode", "raw", "--max-tokens", 5, "--temperature", 0, *REFERENCE]
    (text, said), (expected, _) = (run(app, *words, "--speculate", wanted) for wanted in ("auto", "off"))
    assert text == expected
    assert f"{tmp_path}: drafts: none, as the release holds no draft stages\n" in said


@pytest.mark.parametrize("kind", ["preview", pytest.param("dspark", marks=pytest.mark.slow)])
def test_answers_begun_with_some_drafts_are_resumed_with_others(
    app: typer.Typer, release: Path, dspark: tuple[Checkpoint, Path], tmp_path: Path, kind: str
) -> None:
    """A file of answers does not say how they were drafted: any part of it may come from any run."""
    folder = release
    if kind == "dspark":
        folder = dspark[1]
        write_tokenizer(folder)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(text)}\n" for text in ("one", "two", "three")))
    words = ["generate", folder, "--prompts", file, "--mode", "raw", "--seed", 5, "--max-tokens", 12, *REFERENCE]
    expected = texts(run(app, *words)[0])
    out = tmp_path / "answers.jsonl"
    for count, speculate in enumerate(("1", "auto", "1" if kind == "preview" else "5")):
        if out.exists():
            out.write_text("".join(out.read_text().splitlines(keepends=True)[:count]) + '{"index": 2, "requ')
        run(app, *words, "--out", out, "--speculate", speculate)
    assert texts(out.read_text()) == expected
    assert any("drafts" in json.loads(line) for line in out.read_text().splitlines())


def texts(lines: str) -> dict[int, str]:
    return {line["index"]: line["text"] for line in map(json.loads, lines.splitlines())}

"""The engine as a library: what users pass in, what they find, and the defaults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_checkpoint import Checkpoint, random_tokens
from small_tokenizer import write_tokenizer

import flagrelease
from flagrelease import engine
from flagrelease.engine.numerics import own_numerics
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError, VerificationError
from flagrelease.model.v4.config import read_config

TOKENS = random_tokens(9)


@pytest.fixture
def _bfloat16_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "form",
    [tuple, torch.tensor, np.array, lambda ids: torch.tensor(ids, dtype=torch.int32),
     lambda ids: np.array(ids, np.uint16), lambda ids: [np.int64(i) for i in ids]],
    ids=["tuple", "tensor", "array", "int32 tensor", "uint16 array", "list of numpy integers"],
)  # fmt: skip
def test_token_ids_may_come_in_any_form_of_integers(float32_model: Model, form: Any) -> None:
    # A tensor ended in "Boolean value of Tensor .. is ambiguous".
    expected = float32_model.logits(TOKENS)
    assert torch.equal(float32_model.logits(form(TOKENS)), expected)
    assert float32_model.generate(form(TOKENS), engine.Sampling(temperature=0, max_tokens=3)) == float32_model.generate(
        TOKENS, engine.Sampling(temperature=0, max_tokens=3)
    )
    cache = float32_model.new_cache(2, 20)
    last = float32_model.prefill(cache, 0, form(TOKENS))
    assert torch.allclose(last, expected[-1], atol=1e-4)
    assert float32_model.extend(cache, [form(TOKENS[:2]), form(TOKENS)]).shape == (2, len(expected[0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(torch.tensor([TOKENS]), r"shape \[1, 9\]: one sequence has one dimension"),
     (np.array(3), r"shape \[\]"), (torch.tensor([1.0]), "integers"), ([True], "integers"), (["1"], "integers"),
     ([], "0 tokens")],
)  # fmt: skip
def test_what_is_no_sequence_of_token_ids_is_refused(float32_model: Model, wrong: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        float32_model.logits(wrong)


@pytest.mark.parametrize("dtype", ["float32", "torch.float32", torch.float32])
def test_the_dtype_may_be_a_name(quick_release: Path, dtype: Any) -> None:
    assert engine.load(quick_release, "bf16", dtype).numerics.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float23", "load", "float64", torch.float16])
def test_another_dtype_is_refused(quick_release: Path, dtype: Any) -> None:
    with pytest.raises(UsageError, match="float"):
        engine.load(quick_release, "bf16", dtype)


@pytest.mark.parametrize("numerics", ["native", "bf16"])
def test_torchs_default_dtype_changes_nothing(
    native_release: Path, numerics: Any, request: pytest.FixtureRequest
) -> None:
    # Mixed tensors of FP32 and BF16 before: the engine's own FP32 tensors took the default.
    tokens, sampling = random_tokens(140), engine.Sampling(temperature=0.8, top_p=0.9, seed=3, max_tokens=4)

    def results() -> tuple[Any, ...]:
        model = engine.load(native_release, numerics, mtp=True)
        return model.logits(tokens), model.draft_logits(tokens), model.generate(tokens, sampling)

    logits, drafts, text = results()
    request.getfixturevalue("_bfloat16_by_default")
    again = results()
    assert torch.equal(again[0], logits)
    assert torch.equal(again[1], drafts)
    assert again[2] == text


@pytest.mark.usefixtures("_bfloat16_by_default")
def test_every_step_of_a_runner_works_with_another_default_dtype(native_release: Path, tmp_path: Path) -> None:
    from flagrelease.engine.batch.runner import Runner
    from flagrelease.engine.batch.scheduler import Scheduler, generate_all

    write_tokenizer(tmp_path)
    model = engine.load(native_release, mtp=True)
    scheduler = Scheduler(Runner(model, 2, 64, speculate=True), engine.Tokenizer(tmp_path))
    done = generate_all(scheduler, [TOKENS, TOKENS[:3]], engine.Sampling(0.7, 0.9, 1, 6))
    assert [each.generated for each in done] == [6, 6]


def test_numerics_are_the_releases_own_unless_given(
    checkpoint: Checkpoint, native_release: Path, quick_release: Path, tmp_path: Path
) -> None:
    # The default was native, whatever the release: a bf16 release ran with activations rounded to FP8.
    assert engine.load(native_release).numerics.name == "native"
    assert engine.load(quick_release).numerics.name == "bf16"
    assert engine.load(quick_release, "native").numerics.name == "native"


def test_a_converted_release_says_its_numerics_in_its_manifest(tmp_path: Path) -> None:
    from flagrelease.cli import main
    from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint

    write_checkpoint(tmp_path / "source", tiny_config(num_hidden_layers=1, compress_ratios=[0, 0]))
    out = tmp_path / "out"
    words = [word for target in ("fp8:hf", "bf16:hf", "native:hf") for word in ("--target", target)]
    assert main(["convert", str(tmp_path / "source"), *words, "--out", str(out)]) == 0
    config, _ = read_config(tmp_path / "source" / "config.json")
    assert own_numerics(tmp_path / "source", config) == "native"
    for dtype in ("fp8", "bf16", "native"):
        assert engine.load(out / f"{dtype}-hf").numerics.name == dtype
    (tmp_path / "source" / "manifest.json").write_text("{}")
    with pytest.raises(VerificationError):
        own_numerics(tmp_path / "source", config)


def test_dir_shows_what_is_public() -> None:
    assert dir(engine) == sorted(engine.__all__)
    assert {"load", "Model", "Sampling", "Tokenizer", "encode_messages", "parse_completion"} <= set(dir(engine))
    assert all(getattr(engine, name) is not None for name in engine.__all__)
    assert dir(flagrelease) == ["__version__", "engine"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        engine.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flagrelease.nothing  # noqa: B018


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, flagrelease; dir(flagrelease.engine); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of docs/engine.md below "As a library", on the small trained model, as it is printed there."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "engine.md").read_text(encoding="utf-8")
    code = text[text.index("## As a library") :].split("```python\n")[1].split("```")[0]
    assert "examples/tiny/flagrelease-tiny-v4" in code
    monkeypatch.chdir(root)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/engine.md", "exec"), found)
    assert found["logits"].shape == (len(found["tokens"]), found["model"].config.vocab_size)
    assert found["reply"].content

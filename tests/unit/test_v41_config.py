"""DeepSeek-V4.1's config, inventory and totals, and what of it is refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from v41_checkpoint import write_small

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP8, FP8_GROUP
from flagrelease.model.families import family_of, has_known_shape, parse_config
from flagrelease.model.synthetic import Stored, stored_tensors
from flagrelease.model.v41.synthetic import tiny_config, write_checkpoint
from flagrelease.shard.header import tensor_bytes
from flagrelease.source.source import read_source, survey_source

GOLDEN = Path(__file__).parents[1] / "golden" / "configs"
FLASH: dict[str, Any] = json.loads((GOLDEN / "v41-flash.json").read_text())


def test_the_inventory_has_the_published_totals() -> None:
    """Facts B.1: tensors, bytes and elements of each dtype of DeepSeek-V4.1-Flash, and of its public FP8 repack."""
    config = parse_config(FLASH, "config.json")
    specs = family_of(config).inventory(config).values()
    headers = [entry for spec in specs for entry in stored_tensors(spec, config, Stored())]
    assert len(headers) == 96_085
    assert sum(tensor_bytes(dtype, shape) for _, dtype, shape in headers) == 510_286_023_000
    elements: Counter[str] = Counter()
    for _, dtype, shape in headers:
        elements[dtype] += math.prod(shape)
    assert elements == {
        "I8": 278_585_671_680, "F8_E4M3": 204_015_223_296, "F8_E8M0": 23_563_015_184, "BF16": 1_976_441_856,
        "F32": 42_307_282,
    }  # fmt: skip
    repacked = [entry for spec in specs for entry in stored_tensors(spec, config, Stored("fp8"))]
    assert (len(repacked), sum(tensor_bytes(dtype, shape) for _, dtype, shape in repacked)) == (96_085, 772_004_202_840)


def test_tensors_of_each_layer_are_those_of_the_headers() -> None:
    """Facts B.1: a profile of the real headers counted them by layer, scales included."""
    config = parse_config(FLASH, "config.json")
    found: Counter[str] = Counter()
    for spec in family_of(config).inventory(config).values():
        entries = stored_tensors(spec, config, Stored())
        found[".".join(spec.name.split(".")[:2])] += len(entries)
    layers = {1: 2340, 2: 2342, 8: 2342, 14: 2348, 20: 2341, **dict.fromkeys((24, 28, 32, 36), 2337)}
    assert [found[f"layers.{n}"] for n in range(40)] == [layers.get(n, 2334) for n in range(40)]
    assert [found[f"mtp.{n}"] for n in range(3)] == [801, 798, 802]


def test_the_native_config_is_deepseeks_own() -> None:
    config = parse_config(FLASH, "config.json")
    wanted = json.loads((GOLDEN / "v41-flash-inference.json").read_text())
    assert family_of(config).native_arguments(config) | {"dtype": "fp8", "expert_dtype": "fp4"} == wanted
    assert family_of(config).published(config) == ("DeepSeek-V4.1-Flash", "DeepSeek-V4.1-Flash-1017")
    assert has_known_shape("DeepSeek-V4.1-Flash-1017")


@pytest.mark.parametrize("document", [FLASH, tiny_config()], ids=["flash", "tiny"])
def test_tables_have_a_row_for_each_remainder_of_the_next_primes(document: dict[str, Any]) -> None:
    """Facts C.6: each layer, order and head takes the next prime that none has, from `engram_vocab_size` on."""
    text = document["text_config"]
    heads = (text["engram_max_ngram_size"] - 1) * text["engram_n_heads"]
    primes = (n for n in count(text["engram_vocab_size"]) if all(n % d for d in range(2, math.isqrt(n) + 1)))
    assert [sum(islice(primes, heads)) for _ in text["engram_layer_ids"]] == text["engram_num_embeddings"]


def test_blocks_come_from_the_config_and_tables_have_their_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(), holes=True)
    found = {(one.format, one.block) for one in read_source(tmp_path).tensors if one.format in (FP8, FP8_GROUP)}
    assert found == {(FP8, (32, 32)), (FP8_GROUP, (1, 32))}


@pytest.mark.parametrize("key", [key for key in tiny_config()["text_config"] if key not in {
    "model_type", "num_key_value_heads", "hidden_act", "attention_bias", "topk_method", "norm_topk_prob"}])  # fmt: skip
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    config = tiny_config()
    del config["text_config"][key]
    with pytest.raises(CheckpointError, match=f"^config.json: .*{key}"):
        parse_config(config, "config.json")


def _without_text(config: dict[str, Any]) -> None:
    del config["text_config"]


def _two_words(config: dict[str, Any]) -> None:
    config["expert_dtype"] = "fp8"


def _text(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["text_config"].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_text, "text_config: an object is expected"),
        (_two_words, "expert_dtype is fp8, and fp4 in quantization_config"),
        (_text(compress_ratios=[0, 0, 2, 2, 2, 1, 1, 1]), "compress_ratios has 8 entries; 8 layers and 3 draft stages"),
        (_text(compress_ratios=[0, 0, 4, 2, 2, 1, 1, 1, 0, 0, 0]), "compress_ratios holds .4.; DeepSeek-V4.1 has 0, 1"),
        (_text(kv_source_layer_ids=[1, 4, 5], index_source_layer_ids=[1, 4, 5]), "kv_source_layer_ids has .1., whose"),
        (_text(kv_source_layer_ids=[2, 3]), "kv_source_layer_ids has .3., which index_source_layer_ids lacks"),
        (_text(engram_layer_ids=[1, 8]), "engram_layer_ids is .1, 8.; layers from 0 to 7"),
        (_text(engram_num_embeddings=[1916]), "engram_num_embeddings has 1 entries, engram_layer_ids 2"),
        (_text(num_nextn_predict_layers=1), "num_nextn_predict_layers is 1; dspark_target_layer_ids name 3 stages"),
        (_text(o_groups=3), "o_groups 3 does not divide"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change: Callable[[dict[str, Any]], None], says: str) -> None:
    config = tiny_config()
    change(config)
    with pytest.raises(CheckpointError, match=says):
        parse_config(config, "config.json")


# --- what others publish of V4.1


def _without(folder: Path, gone: Callable[[str], bool], *, indexed: bool) -> None:
    """Remove the files whose tensors are all gone; `indexed`: the index still names them."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = {file for name, file in index["weight_map"].items() if gone(name)}
    for file in files:
        (folder / file).unlink()
    if not indexed:
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file not in files}
        del index["metadata"]
        path.write_text(json.dumps(index))


@pytest.mark.parametrize("indexed", [False, True])
def test_a_prune_without_engram_tables_is_refused_with_that_reason(tmp_path: Path, indexed: bool) -> None:
    write_checkpoint(tmp_path, tiny_config(), holes=True)
    _without(tmp_path, lambda name: ".engram." in name, indexed=indexed)
    tables = r"layers\.1\.engram\.embed\.weight, layers\.4\.engram\.embed\.weight"
    with pytest.raises(CheckpointError, match=rf"has no Engram tables \({tables}\), as prunes of DeepSeek-V4\.1"):
        read_source(tmp_path)


def test_an_extract_of_draft_stages_is_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(), holes=True)
    _without(tmp_path, lambda name: not name.startswith("mtp."), indexed=False)
    with pytest.raises(CheckpointError, match=r"holds the draft stages \(mtp\.\*\) alone, an extract"):
        read_source(tmp_path)


def test_a_prune_must_say_how_many_experts_it_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(n_routed_experts=12, dspark_n_routed_experts=4), holes=True)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    _, problems = survey_source(tmp_path)
    assert [problem.partition("config.json: ")[2] for problem in problems[:2]] == [
        f"{key} is {said}, but every block of {kind}.* stores experts 0 to {kept - 1}: a pruned checkpoint must say "
        f"{key} {kept}"
        for key, said, kind, kept in (
            ("n_routed_experts", 16, "layers", 12), ("dspark_n_routed_experts", 8, "mtp", 4),
        )
    ]  # fmt: skip


def test_another_layout_of_a_later_snapshot_is_refused_by_its_tensors(tmp_path: Path) -> None:
    """No list of the tensors of -1017 was found: the inventory decides, and names what differs."""
    write_checkpoint(tmp_path, tiny_config(), holes=True)
    document = tiny_config(kv_source_layer_ids=[2, 5])
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"'layers\.4\.attn\.compressor\.\S+' is not part of this model"):
        read_source(tmp_path)


# --- the one that tests run


def test_the_small_checkpoint_is_whole_and_is_written_alike_each_time(v41_release: Path, tmp_path: Path) -> None:
    read_source(v41_release)  # refuses what its inventory lacks
    write_small(tmp_path)
    for path in v41_release.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name

"""DeepSeek-V4.1-Flash at full size: the totals of every release and of every rank, to the byte.

The numbers are those of the fact sheet on V4.1 (B.1, B.3), which computed them from the inventory. The FP8 total is
also that of a public repack.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from flagrelease.convert import request as request_module
from flagrelease.convert.planning.fit import rank_bytes
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.request import ConversionRequest, make_request
from flagrelease.model.v41.synthetic import write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.named import find_recipe
from flagrelease.source.source import Source, read_source

CONFIG = Path(__file__).parents[1] / "golden" / "configs" / "v41-flash.json"
RANKS = {
    "native:mp2": (257_689_320_912, 48_810), "native:mp4": (130_670_254_224, 25_194),
    "native:mp8": (67_160_720_880, 13_386), "fp8:mp2": (388_548_410_832, 48_810),
    "fp8:mp4": (196_099_799_184, 25_194), "fp8:mp8": (99_875_493_360, 13_386),
}  # fmt: skip


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("v41-full")
    write_checkpoint(folder, json.loads(CONFIG.read_text()), holes=True)
    return read_source(folder)


@pytest.fixture
def request_of(
    full: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], ConversionRequest]:
    """What the shipped recipe asks for with a `--target`, its model and its Engram tables as given."""

    def read(folder: Path, told: object) -> Source:
        assert folder == full.root
        return full

    def make(target: str, change: str) -> ConversionRequest:
        recipe = tmp_path / "recipe.yaml"
        old, _, new = change.partition(" -> ")
        recipe.write_text(find_recipe("v4.1-flash").read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        return make_request(recipe, Path(full.root), [target] if target else [], [], None)

    monkeypatch.setattr(request_module, "read_source", read)
    return make


KEPT = "convert:\n -> convert:\n  engram_tables: keep\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "change", "tensors", "total"),
    [
        ("", "", 96_085, 510_286_023_000),  # what the recipe has for NVIDIA
        ("", "model: DeepSeek-V4.1-Flash -> model: DeepSeek-V4.1-Flash-1017", 96_085, 510_286_023_000),
        ("fp8:hf", "", 96_085, 773_636_540_760), ("fp8-e8m0:hf", "", 96_085, 772_004_202_840),
        ("bf16:hf", "", 48_496, 1_526_495_246_152), ("bf16:hf", KEPT, 48_498, 1_336_025_579_352),
    ],
)  # fmt: skip
def test_releases_of_the_shipped_recipe_have_the_totals_of_the_facts(
    request_of: Callable[[str, str], ConversionRequest], target: str, change: str, tensors: int, total: int
) -> None:
    asked = request_of(target, change)
    (release,) = make_plan(asked.source, asked.targets, asked.options).releases
    assert len(release.parts) == tensors
    assert sum(part.nbytes for _, _, part in release.parts.values()) == total
    files = [one.nbytes for file in release.files for one in file.slices]
    assert (len(files), sum(files)) == (tensors, total)


@pytest.mark.slow
@pytest.mark.parametrize("target", RANKS)
def test_every_rank_has_the_bytes_of_the_facts(full: Source, target: str) -> None:
    total, tensors = RANKS[target]
    (release,) = make_plan(full, [parse_target(target)], ConvertSpec()).releases
    nbytes, counts = Counter[str](), Counter[str]()
    for file in release.files:
        nbytes[file.name] += sum(one.nbytes for one in file.slices)
        counts[file.name] += len(file.slices)
    assert set(nbytes.values()) == {total} == {rank_bytes(full, parse_target(target))}
    assert set(counts.values()) == {tensors}
    assert len(nbytes) == int(target.partition("mp")[2])

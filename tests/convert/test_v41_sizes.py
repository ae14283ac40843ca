"""DeepSeek-V4.1-Flash at full size: the totals of every release and of every rank, to the byte.

The numbers are those of the fact sheet on V4.1 (B.1, B.3), which computed them from the inventory. The FP8 total is
also that of a public repack.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from flagrelease.convert.planning.fit import rank_bytes
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.model.v41.synthetic import write_checkpoint
from flagrelease.records.recipe import ConvertSpec
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "engram", "tensors", "total"),
    [
        ("native:hf", "decode", 96_085, 510_286_023_000),
        ("fp8:hf", "decode", 96_085, 773_636_540_760), ("fp8-e8m0:hf", "decode", 96_085, 772_004_202_840),
        ("bf16:hf", "decode", 48_496, 1_526_495_246_152), ("bf16:hf", "keep", 48_498, 1_336_025_579_352),
    ],
)  # fmt: skip
def test_releases_have_the_totals_of_the_facts(
    full: Source, target: str, engram: str, tensors: int, total: int
) -> None:
    wanted = replace(parse_target(target), engram=engram)  # type: ignore[arg-type]
    (release,) = make_plan(full, [wanted], ConvertSpec()).releases
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

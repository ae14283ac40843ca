"""Releases against an independent re-cut (`recut.py`), byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import recut
from harness import contents, plan_of, run_plan
from safetensors import safe_open

from flagrelease.model.synthetic import Stored
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint

TARGETS = [
    "bf16:hf",
    "fp8:hf",
    "native:hf",
    "bf16:mp8",
    "fp8:mp8",
    "native:mp8",
    "bf16:mp16",
    "fp8:mp16",
    "native:mp16",
]


@pytest.fixture(scope="module")
def releases(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("releases")
    run_plan(plan_of(checkpoint, *TARGETS, "native:mp1", max_file_bytes=3_000_000), out)
    return out


@pytest.mark.parametrize("target", [t for t in TARGETS if "mp" in t])
def test_mp_ranks_equal_an_independent_recut(target: str, checkpoint: Path, releases: Path) -> None:
    dtype, layout = target.split(":")
    mp = int(layout[2:])
    expected = recut.ranks(recut.read_folder(checkpoint), tiny_config(), dtype, mp)
    for rank in range(mp):
        assert recut.read_file(releases / f"{dtype}-{layout}" / f"model{rank}-mp{mp}.safetensors") == expected[rank]


@pytest.mark.parametrize("target", ["bf16:hf", "fp8:hf", "native:hf"])
def test_hf_equals_an_independent_decode(target: str, checkpoint: Path, releases: Path) -> None:
    folder = releases / target.replace(":", "-")
    assert recut.read_folder(folder) == recut.whole(recut.read_folder(checkpoint), target.split(":")[0], mp=False)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {path.name: recut.read_file(path) for path in folder.glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(len(t[2]) for tensors in files.values() for t in tensors.values())
    assert all(path.stat().st_size <= 3_000_000 for path in folder.glob("*.safetensors"))
    assert len(files) > 2


@pytest.mark.parametrize("o_groups", ["shared", "split"])
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "native"])
def test_o_groups(dtype: str, o_groups: str, checkpoint: Path, tmp_path: Path) -> None:
    run_plan(plan_of(checkpoint, f"{dtype}:mp16", o_groups=o_groups), tmp_path)
    expected = recut.ranks(recut.read_folder(checkpoint), tiny_config(), dtype, 16, o_groups)
    for rank in range(16):
        assert recut.read_file(tmp_path / f"{dtype}-mp16" / f"model{rank}-mp16.safetensors") == expected[rank]
    manifest = json.loads((tmp_path / f"{dtype}-mp16" / "manifest.json").read_text())
    cut = {"layout": "mp", "mp": 16, "o_groups": o_groups}
    assert manifest["target"] == {"dtype": dtype, "drafts": "keep", **cut}


def test_the_safetensors_library_reads_every_file_and_finds_aligned_tensors(releases: Path) -> None:
    sizes = {"BF16": 2, "F32": 4, "I64": 8}
    for path in releases.glob("*/*.safetensors"):
        with safe_open(path, "np") as file:
            assert set(file.keys()) == set(recut.read_file(path))
        blob = path.read_bytes()
        length = int.from_bytes(blob[:8], "little")
        for name, entry in json.loads(blob[8 : 8 + length]).items():
            if name != "__metadata__":
                assert (8 + length + entry["data_offsets"][0]) % sizes.get(entry["dtype"], 1) == 0, (path, name)


@pytest.mark.parametrize(
    "stored",
    [
        Stored(experts="fp8"),
        Stored(experts="fp8", scale_dtype="F32"),
        Stored(scale_dtype="BF16"),
        Stored(scale_dtype="F16"),
    ],
    ids=str,
)
def test_other_ways_to_store_a_source(stored: Stored, tmp_path: Path) -> None:
    source, config = tmp_path / "source", tiny_config(expert_dtype=stored.experts)
    write_checkpoint(source, config, stored)
    run_plan(plan_of(source, "bf16:mp8", "native:mp8"), tmp_path / "out")
    tensors = recut.read_folder(source)
    for dtype in ("bf16", "native"):
        expected = recut.ranks(tensors, config, dtype, 8)
        for rank in range(8):
            assert recut.read_file(tmp_path / "out" / f"{dtype}-mp8" / f"model{rank}-mp8.safetensors") == expected[rank]


def test_weight_scale_inv_keeps_its_name_in_hf_and_becomes_scale_in_mp(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_checkpoint(source, tiny_config(), Stored(scale_suffix=".weight_scale_inv"))
    run_plan(plan_of(source, "native:hf", "native:mp1", "bf16:hf"), tmp_path / "out")
    hf = recut.read_folder(tmp_path / "out" / "native-hf")
    assert hf == recut.read_folder(source)
    mp = recut.read_file(tmp_path / "out" / "native-mp1" / "model0-mp1.safetensors")
    assert {n for n in mp if "scale" in n and not n.split(".")[-1].startswith("hc_")} == {
        n.replace(".weight_scale_inv", ".scale") for n in hf if n.endswith(".weight_scale_inv") and ".wo_a." not in n
    }


def test_a_bf16_release_is_a_source_for_other_cuts(checkpoint: Path, releases: Path, tmp_path: Path) -> None:
    run_plan(plan_of(releases / "bf16-hf", "bf16:mp8"), tmp_path)
    for rank in range(8):
        name = f"bf16-mp8/model{rank}-mp8.safetensors"
        assert recut.read_file(tmp_path / name) == recut.read_file(releases / name)


def test_ranks_in_parts(checkpoint: Path, releases: Path, tmp_path: Path) -> None:
    run_plan(plan_of(checkpoint, "bf16:mp8", rank_part_bytes=1_500_000), tmp_path)
    folder = tmp_path / "bf16-mp8"
    for rank in range(8):
        parts = sorted(folder.glob(f"model{rank}-mp8-part*.safetensors"))
        assert [p.name for p in parts] == [f"model{rank}-mp8-part{n}.safetensors" for n in range(1, len(parts) + 1)]
        assert len(parts) > 1
        assert all(p.stat().st_size <= 1_500_000 for p in parts)
        merged: recut.Stored = {}
        for part in parts:
            merged |= recut.read_file(part)
        assert merged == recut.read_file(releases / "bf16-mp8" / f"model{rank}-mp8.safetensors")


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_workers_and_company_never_change_a_byte(
    workers: int, checkpoint: Path, releases: Path, tmp_path: Path
) -> None:
    """One release alone, with any number of workers, is what it is among nine others."""
    run_plan(plan_of(checkpoint, "bf16:mp8", "fp8:hf", max_file_bytes=3_000_000), tmp_path, workers)
    for folder in ("bf16-mp8", "fp8-hf"):
        assert contents(tmp_path / folder) == contents(releases / folder)


def test_files_are_readable_by_others(releases: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in releases.rglob("*") if path.is_file()}
    assert modes == {0o644}

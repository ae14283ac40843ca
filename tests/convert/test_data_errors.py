"""What only the data can show stops the work with tensor, file and place, and leaves nothing under a final name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import recut
from harness import plan_of, run_plan

from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.records.manifest import MANIFEST_NAME


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "source"
    shutil.copytree(checkpoint, copy)
    return copy


def plant(folder: Path, name: str, row: int, column: int, value: bytes) -> Path:
    """Overwrite one element of a stored tensor."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"][name]
    blob = bytearray(path.read_bytes())
    length = int.from_bytes(blob[:8], "little")
    entry = json.loads(bytes(blob[8 : 8 + length]))[name]
    at = 8 + length + entry["data_offsets"][0] + (row * entry["shape"][1] + column) * len(value)
    blob[at : at + len(value)] = value
    path.write_bytes(bytes(blob))
    return path


def assert_nothing_has_a_name(out: Path) -> None:
    assert not [path for path in out.glob("*/*") if path.is_file()]
    assert not list(out.rglob(MANIFEST_NAME))


@pytest.mark.parametrize("target", ["bf16:mp8", "fp8:hf", "native:hf"])
@pytest.mark.parametrize(
    ("name", "row", "column", "value", "said"),
    [
        ("layers.1.ffn.experts.7.w2.scale", 201, 3, b"\xff", r"scale .*experts\.7\.w2\.scale' at \[201, 3\].*NaN"),
        ("layers.1.attn.wq_a.scale", 0, 1, b"\xff", r"scale .*wq_a\.scale' at \[0, 1\].*NaN"),
        ("layers.2.attn.wkv.weight", 77, 130, b"\x7f", r"wkv\.weight' at \[77, 130\].*0x7F is NaN"),
        ("mtp.0.attn.wo_b.weight", 255, 2047, b"\xff", r"wo_b\.weight' at \[255, 2047\].*0xFF is NaN"),
    ],
)
def test_nan(
    source: Path, tmp_path: Path, target: str, name: str, row: int, column: int, value: bytes, said: str
) -> None:
    path = plant(source, name, row, column, value)
    with pytest.raises(CheckpointError, match=said) as caught:
        run_plan(plan_of(source, target), tmp_path / "out")
    assert path.name in str(caught.value)
    assert_nothing_has_a_name(tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_scale_that_is_no_factor(tmp_path: Path, value: float) -> None:
    from flagrelease.model.synthetic import Stored
    from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint

    write_checkpoint(tmp_path / "source", tiny_config(), Stored(scale_dtype="F32"))
    plant(tmp_path / "source", "layers.0.attn.wq_b.scale", 3, 0, np.float32(value).tobytes())
    with pytest.raises(CheckpointError, match=r"wq_b\.scale' at \[3, 0\]"):
        run_plan(plan_of(tmp_path / "source", "bf16:hf"), tmp_path / "out")
    assert_nothing_has_a_name(tmp_path / "out")


def test_a_value_beyond_bf16(source: Path, tmp_path: Path) -> None:
    plant(source, "layers.0.attn.wq_b.weight", 0, 0, b"\x7e")  # 448
    plant(source, "layers.0.attn.wq_b.scale", 0, 0, bytes([250]))  # 2^123: 448 * 2^123 > 2^128
    with pytest.raises(CheckpointError, match=r"wq_b\.weight' at \[0, 0\].*beyond BF16"):
        run_plan(plan_of(source, "bf16:hf"), tmp_path / "out")
    assert_nothing_has_a_name(tmp_path / "out")


def test_a_lossy_repack_is_refused_or_counted(source: Path, tmp_path: Path) -> None:
    """A scale 2^18 above its neighbours in a tile leaves them only their sixes (facts: survival table)."""
    name = "layers.0.ffn.experts.3.w1"
    plant(source, f"{name}.scale", 5, 0, bytes([121 + 18]))
    with pytest.raises(CheckpointError, match=r"experts\.3\.w1\.weight': rows 0 to 127 hold \d+ FP4 elements.*allow"):
        run_plan(plan_of(source, "fp8:mp8"), tmp_path / "refused")
    assert_nothing_has_a_name(tmp_path / "refused")

    manifest = run_plan(plan_of(source, "fp8:mp8", lossy_repack="allow"), tmp_path / "allowed")["fp8-mp8"]
    stored = recut.read_folder(source)
    weight, scale = stored[f"{name}.weight"], stored[f"{name}.scale"]
    codes, tiles = recut.repack(weight, scale)
    kept = recut.array(codes).astype(np.float64) * np.repeat(
        np.repeat(recut.array(tiles).astype(np.float64), 128, axis=0), 128, axis=1
    )
    lost = int((kept != recut.decode(weight, scale)).sum())
    assert lost > 0
    assert manifest.elements.lost == lost
    assert manifest.inexact == {f"{name}.weight": lost}
    assert recut.read_file(tmp_path / "allowed" / "fp8-mp8" / "model1-mp8.safetensors")[f"{name}.weight"] == codes
    run_plan(plan_of(source, "bf16:mp8"), tmp_path / "bf16")  # what loses in FP8 is exact in BF16


def test_rounding_with_general_scales_is_counted(tmp_path: Path) -> None:
    from flagrelease.model.synthetic import Stored
    from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint

    source = tmp_path / "source"
    write_checkpoint(source, tiny_config(), Stored(scale_dtype="F32"))
    plant(source, "layers.0.attn.wkv.scale", 0, 1, np.float32(0.1).tobytes())
    manifest = run_plan(plan_of(source, "bf16:hf"), tmp_path / "out")["bf16-hf"]
    stored = recut.read_folder(source)
    block = recut.array(stored["layers.0.attn.wkv.weight"])[:, 128:].astype(np.float64) * float(np.float32(0.1))
    rounded = recut.array(recut.bf16(block)).astype(np.float64)
    assert manifest.inexact == {"layers.0.attn.wkv.weight": int((rounded != block).sum())}
    assert manifest.elements.rounded == manifest.inexact["layers.0.attn.wkv.weight"]


def test_a_source_that_shrinks_under_the_work(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, "bf16:hf")
    path = source / "model-00003-of-00006.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model-00003-of-00006\.safetensors.*truncated"):
        run_plan(plan, tmp_path / "out")
    assert_nothing_has_a_name(tmp_path / "out")


def test_no_space_is_said_before_any_byte(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil as real

    plan = plan_of(source, "bf16:mp8")
    usage = real.disk_usage(tmp_path)._replace(free=plan.bytes_to_write - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match=rf"{plan.bytes_to_write:,} bytes are still to be written"):
        run_plan(plan, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_disk_that_fills_up(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    pwrite, calls = os.pwrite, []

    def full(fd: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        run_plan(plan_of(source, "bf16:mp8"), tmp_path / "out")
    assert_nothing_has_a_name(tmp_path / "out")
    monkeypatch.setattr(os, "pwrite", pwrite)
    run_plan(plan_of(source, "bf16:mp8"), tmp_path / "out")


@pytest.mark.parametrize("what", ["a foreign file", "a file in its place"])
def test_an_output_folder_that_is_not_ours(source: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out" / "bf16-mp8"
    if what == "a foreign file":
        out.mkdir(parents=True)
        (out / "thesis.tex").write_text("mine")
    else:
        out.parent.mkdir()
        out.write_text("mine")
    with pytest.raises(ResourceError, match=r"not begun by convert|not a folder"):
        run_plan(plan_of(source, "bf16:mp8"), tmp_path / "out")
    assert (out / "thesis.tex" if out.is_dir() else out).read_text() == "mine"

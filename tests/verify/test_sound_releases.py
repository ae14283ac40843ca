"""Sound releases pass, in every dtype and layout, and the report says what was looked at."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_releases import CONFIG, Maker, checkpoint_tensors, ordinary_tensors, write_source

from flagrelease.errors import CheckpointError, UsageError, VerificationError
from flagrelease.records.manifest import ElementCounts, read_manifest
from flagrelease.verify.verify import bytes_to_read, verify_release

NAMES = ["files", "config", "structure", "replicas", "tensors", "source", "companions"]  # and stacks
RELEASES = [
    "bf16-hf", "bf16-mp1", "bf16-mp2", "bf16-mp4", "bf16-mp8-shared", "bf16-mp8-split", "bf16-mp4-parts3",
    "fp8-hf", "fp8-mp4", "fp8-mp8-shared", "native-hf", "native-mp2", "native-mp8-shared", "native-mp2-parts2",
    "fp8-e8m0-hf", "fp8-bf16-wo-a-hf", "int8-hf", "int8-experts-hf", "fp8-channel-hf", "w8a8-ascend-hf", "mxfp8-hf",
]  # fmt: skip


@pytest.mark.parametrize("name", RELEASES)
def test_sound_release_passes(name: str, maker: Maker, tmp_path: Path) -> None:
    release = maker.of(name).write(tmp_path / "release")
    report = verify_release(release, maker.source, workers=2)
    *checks, stacks = report.checks
    assert [(c.name, c.status, c.findings) for c in checks] == [(n, "pass", ()) for n in NAMES]
    assert (stacks.name, stacks.status) == ("stacks", "not-run")  # no recipe names any
    assert report.passed
    assert report.elements == read_manifest(release).elements
    assert report.check("tensors").checked == len(read_manifest(release).tensors)
    # embedding and head are read once more for their copies in ModelSlim's releases
    copies = 2 if name in ("w8a8-ascend-hf", "mxfp8-hf") else 0
    assert report.check("source").checked == len(ordinary_tensors()) + copies


def test_without_a_source_only_the_source_checks_are_not_run(maker: Maker, tmp_path: Path) -> None:
    report = verify_release(maker.of("bf16-mp4").write(tmp_path / "release"))
    assert {c.name for c in report.checks if c.status == "not-run"} == {"source", "companions", "stacks"}
    assert report.passed
    assert report.elements is None


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16"])
def test_float_scales(scale_dtype: str, tmp_path: Path) -> None:
    tensors = checkpoint_tensors(torch.Generator().manual_seed(3), scale_dtype=scale_dtype)
    config = CONFIG | {"quantization_config": CONFIG["quantization_config"] | {"scale_fmt": "ue8m0"}}
    made = Maker(write_source(tmp_path / "source", tensors, config), tensors)
    for name in ("bf16-mp2", "native-hf"):
        assert verify_release(made.of(name).write(tmp_path / name), made.source).passed


@pytest.mark.parametrize("allowed", [True, False])
def test_lossy_repack_passes_only_where_it_is_allowed(allowed: bool, tmp_path: Path) -> None:
    tensors = checkpoint_tensors(torch.Generator().manual_seed(2), spread=20)
    made = Maker(write_source(tmp_path / "source", tensors), tensors)
    made = replace(made.of("fp8-mp2"), options={"lossy_repack": "allow"} if allowed else {})
    release = made.write(tmp_path / "release")
    report = verify_release(release, made.source)
    assert report.passed == allowed
    assert report.elements is not None
    assert report.elements.lost == read_manifest(release).elements.lost > 0
    lines = [str(finding) for finding in report.check("source").findings]
    assert all("elements exactly, and options.lossy_repack is not 'allow'" in line for line in lines)


def _spoil_code(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.attn.wq_a.weight"].view(torch.uint8)[3, 7] = 0xFF


def _spoil_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.ffn.experts.1.w2.scale"].view(torch.uint8)[3, 2] = 255


def _overflow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.attn.wq_a.scale"].view(torch.uint8)[0, 0] = 254


@pytest.mark.parametrize("name", ["bf16-hf", "fp8-hf", "native-mp2"])
@pytest.mark.parametrize("spoil", [_spoil_code, _spoil_scale])
def test_nan_in_the_source_is_reported(name: str, spoil: Callable[[Any], None], tmp_path: Path) -> None:
    tensors = checkpoint_tensors(torch.Generator().manual_seed(4))
    spoil(tensors)
    made = Maker(write_source(tmp_path / "source", tensors), tensors).of(name)
    report = verify_release(made.write(tmp_path / "release"), made.source)
    assert any("NaN" in finding.rule for finding in report.check("source").findings)


def test_overflow_of_bf16_is_reported(tmp_path: Path) -> None:
    tensors = checkpoint_tensors(torch.Generator().manual_seed(4))
    _overflow(tensors)
    made = Maker(write_source(tmp_path / "source", tensors), tensors)
    report = verify_release(made.write(tmp_path / "release"), made.source)
    assert any("beyond the range of BF16" in finding.rule for finding in report.check("source").findings)


def test_finding_points_at_the_flipped_byte(maker: Maker, tmp_path: Path) -> None:
    release = maker.of("bf16-mp8-split").write(tmp_path / "release")
    path = release / "model5-mp8.safetensors"  # o-group 2, second half of its columns
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + length])["layers.1.attn.wo_a.weight"]["data_offsets"][0]
    offset = 8 + length + begin + (9 * 128 + 31) * 2  # row 9, column 31 of a [128, 128] piece of BF16
    data[offset + 1] ^= 0x80  # the sign
    path.write_bytes(data)
    report = verify_release(release, maker.source)
    (finding,) = report.check("source").findings
    assert (finding.tensor, finding.file) == ("layers.1.attn.wo_a.weight", path.name)
    assert (finding.row, finding.column, finding.offset) == (2 * 128 + 9, 128 + 31, offset)
    assert "1 of 262144 bytes differ" in finding.rule


def test_sample_reads_a_share_of_the_weights_and_says_so(maker: Maker, tmp_path: Path) -> None:
    release = maker.of("native-mp2").write(tmp_path / "release")
    weights = sum(not name.endswith(".scale") for name in ordinary_tensors())
    reports = {seed: verify_release(release, maker.source, sample=0.1, seed=seed) for seed in (0, 1)}
    count = math.ceil(0.1 * weights)
    for seed, report in reports.items():
        assert report.passed
        assert f"{count} of {weights} weights (seed {seed})" in report.check("source").detail
        assert report.check("files").detail == verify_release(release).check("files").detail
    assert reports[0].elements != reports[1].elements
    assert verify_release(release, maker.source, sample=0.1, seed=1, workers=3) == reports[1]
    assert verify_release(release, maker.source, sample=1e-9).check("tensors").checked > 0


def test_sample_never_spares_files_structure_and_replicas(maker: Maker, tmp_path: Path) -> None:
    release = maker.of("bf16-mp2").write(tmp_path / "release")
    path = release / "model1-mp2.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = verify_release(release, sample=0.001)
    assert report.check("files").status == "fail"
    assert report.check("replicas").bytes == verify_release(release).check("replicas").bytes > 0


def test_report_is_the_same_with_any_workers(maker: Maker, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            tensors[name] = -tensors[name]

    release = replace(maker.of("bf16-mp4"), spoil_whole=spoil).write(tmp_path / "release")
    one, four = (verify_release(release, maker.source, workers=n).to_json() for n in (1, 4))
    assert one == four
    document = json.loads(one)
    assert document["passed"] is False
    source = next(check for check in document["checks"] if check["name"] == "source")
    assert source["failed"] == 3 * 8 * 3  # every matrix of every expert
    assert len(source["findings"]) == 20
    assert str(tmp_path) not in one.decode()


def test_progress_adds_up(maker: Maker, tmp_path: Path) -> None:
    release = maker.of("bf16-mp2").write(tmp_path / "release")
    told: list[int] = []
    verify_release(release, maker.source, progress=told.append, workers=2)
    files = list(release.glob("*.safetensors"))
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files)
    assert sum(told) == bytes_to_read(read_manifest(release), 1.0) - headers
    assert bytes_to_read(read_manifest(release), 0.5) < bytes_to_read(read_manifest(release), 1.0)


def test_unusable_input_is_refused(maker: Maker, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no such folder"):
        verify_release(tmp_path / "nothing")
    release = maker.of("bf16-hf").write(tmp_path / "release")
    for sample in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="sample"):
            verify_release(release, sample=sample)
    with pytest.raises(CheckpointError, match="no such folder"):
        verify_release(release, tmp_path / "nothing")
    (release / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(VerificationError, match=r"manifest.json: tool: Field required"):
        verify_release(release)
    (release / "manifest.json").unlink()
    with pytest.raises(VerificationError, match="did not finish"):
        verify_release(release)


def test_bad_source_is_refused(maker: Maker, tmp_path: Path) -> None:
    release = maker.of("bf16-hf").write(tmp_path / "release")
    source = shutil.copytree(maker.source, tmp_path / "source")
    path = source / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        verify_release(release, source)


def test_changed_source_is_not_the_recorded_one(maker: Maker, tmp_path: Path) -> None:
    release = maker.of("bf16-hf").write(tmp_path / "release")
    source = shutil.copytree(maker.source, tmp_path / "source")
    path = source / "model-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # same headers, so the same identity; other bytes
    path.write_bytes(data)
    report = verify_release(release, source)
    assert [check.name for check in report.checks if check.status == "fail"] == ["source"]
    assert any("digest is not the one recorded" in finding.rule for finding in report.check("source").findings)


def test_unreadable_config_stops_what_depends_on_it(maker: Maker, tmp_path: Path) -> None:
    release = maker.of("bf16-hf").write(tmp_path / "release")
    (release / "config.json").write_text("{}")
    report = verify_release(release, maker.source)
    assert [c.status for c in report.checks] == ["fail", "fail", *["not-run"] * 4, "pass", "not-run"]
    assert report.elements is None


def test_element_counts_add() -> None:
    assert ElementCounts(exact=1, lost=2) + ElementCounts(exact=3) == ElementCounts(exact=4, lost=2)

"""What scales by row lose is held against the recipe's limit, and a source that no row can hold is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_releases import Maker, Tensors, checkpoint_tensors, ordinary_tensors, source_record, write_source

from flagrelease.errors import VerificationError
from flagrelease.records.manifest import read_manifest
from flagrelease.verify.result import VerifyReport
from flagrelease.verify.verify import verify_release

WQ_B = "layers.1.attn.wq_b"


def lines(report: VerifyReport) -> list[str]:
    return [str(finding) for finding in report.check("source").findings]


@pytest.mark.parametrize("shift", [0.0, 1e-3])
def test_a_limit_passes_what_it_allows_and_no_row_more(shift: float, maker: Maker, tmp_path: Path) -> None:
    release = maker.of("int8-experts-hf").write(tmp_path / "release")
    losses = read_manifest(release).losses
    shares = {name: 1 - loss.exact_rows / loss.rows for name, loss in losses.items()}
    worst = max(shares.values())
    assert 0 < worst < 1
    limited = replace(
        maker.of("int8-experts-hf"), options={"lossy_repack": {"largest_share_of_inexact_rows": worst - shift}}
    )
    report = verify_release(limited.write(tmp_path / "limited"), maker.source)
    assert report.passed == (shift == 0)
    beyond = sum(share > worst - shift for share in shares.values())
    assert report.check("source").failed == beyond
    assert all("rows are inexact, options.lossy_repack allows" in line for line in lines(report))


@pytest.mark.parametrize("options", [{}, {"lossy_repack": "refuse"}])
def test_losses_are_refused_where_nothing_allows_them(options: dict[str, Any], maker: Maker, tmp_path: Path) -> None:
    release = replace(maker.of("int8-hf"), options=options).write(tmp_path / "release")
    report = verify_release(release, maker.source)
    assert report.check("source").failed == len(read_manifest(release).losses) > 0
    assert all("a scale for each row cannot hold" in line for line in lines(report))


def test_a_limit_of_rows_allows_no_loss_of_blocks(tmp_path: Path) -> None:
    tensors = checkpoint_tensors(torch.Generator().manual_seed(2), spread=20)
    made = Maker(write_source(tmp_path / "source", tensors), tensors)
    made = replace(made.of("fp8-hf"), options={"lossy_repack": {"largest_share_of_inexact_rows": 1.0}})
    report = verify_release(made.write(tmp_path / "release"), made.source)
    assert any("FP8 cannot hold" in line for line in lines(report))


def test_the_recorded_rule_decides(maker: Maker, tmp_path: Path) -> None:
    """The release was made by `best`; its manifest says another rule."""
    options = maker.of("int8-hf").options
    for rule in ("power-of-two", "absmax"):
        release = replace(maker.of("int8-hf"), options=options | {"int8_scale": rule}).write(tmp_path / rule)
        report = verify_release(release, maker.source)
        assert any(f"is not the scale that the rule {rule!r} gives this row" in line for line in lines(report))
    release = replace(maker.of("int8-hf"), options=options | {"int8_scale": "median"}).write(tmp_path / "median")
    with pytest.raises(VerificationError, match=r"options.int8_scale is 'median', not best, power-of-two, absmax, mse"):
        verify_release(release, maker.source)


def test_counts_of_exact_rows_are_not_trusted_without_the_source(maker: Maker, tmp_path: Path) -> None:
    """By hand: FP4 rows with one scale are exact, and rows of random FP8 are not."""
    losses = read_manifest(maker.of("int8-hf").write(tmp_path / "release")).losses
    assert losses[f"{WQ_B}.weight"].exact_rows == 0
    tensors = dict(ordinary_tensors())
    name = "layers.1.ffn.experts.3.w1"
    tensors[f"{name}.scale"] = torch.full_like(tensors[f"{name}.scale"].view(torch.uint8), 120).view(
        torch.float8_e8m0fnu
    )
    made = Maker(write_source(tmp_path / "source", tensors), tensors).of("int8-experts-hf")
    release = made.write(tmp_path / "even")
    assert f"{name}.weight" not in read_manifest(release).losses
    assert verify_release(release, made.source).passed


def nan_code(tensors: Tensors) -> None:
    tensors[f"{WQ_B}.weight"].view(torch.uint8)[3, 7] = 0x7F


def nan_scale(tensors: Tensors) -> None:
    tensors[f"{WQ_B}.scale"].view(torch.uint8)[0, 0] = 255


def large_scale(tensors: Tensors) -> None:
    tensors[f"{WQ_B}.scale"].view(torch.uint8)[0, 0] = 254


@pytest.mark.parametrize("name", ["int8-hf", "fp8-channel-hf", "w8a8-ascend-hf"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (nan_code, "1 elements of the source are NaN or infinite"),
        (nan_scale, "1 scales of 'layers.1.attn.wq_b.scale' in the source are NaN"),
        (large_scale, "rows of the source need a scale beyond the largest float32"),
    ],
)
def test_a_source_that_no_row_can_hold_is_named(
    name: str, spoil: Callable[[Tensors], None], said: str, maker: Maker, tmp_path: Path
) -> None:
    """The release is the sound one's, and the manifest names the spoilt source: what it holds cannot matter."""
    tensors = {key: tensor.clone() for key, tensor in ordinary_tensors().items()}
    spoil(tensors)
    spoilt = Maker(write_source(tmp_path / "source", tensors), tensors)
    release = maker.of(name).write(tmp_path / "release")
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["source"] = source_record(spoilt.source, tensors)
    (release / "manifest.json").write_text(json.dumps(manifest))
    found = lines(verify_release(release, spoilt.source))
    if spoil is large_scale and name == "fp8-channel-hf":
        assert not any(said in line for line in found)  # 448 x 2^127 has the scale 2^127
    else:
        assert any(said in line for line in found), found


def test_mxfp8_needs_powers_of_two(maker: Maker, tmp_path: Path) -> None:
    tensors = dict(ordinary_tensors())
    scale = tensors[f"{WQ_B}.scale"].float()
    scale[1, 0] = 0.75
    tensors[f"{WQ_B}.scale"] = scale
    source = write_source(tmp_path / "source", tensors)
    release = maker.of("mxfp8-hf").write(tmp_path / "release")
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["source"] = source_record(source, tensors)
    (release / "manifest.json").write_text(json.dumps(manifest))
    assert any("1 scales of 'layers.1.attn.wq_b.scale'" in line for line in lines(verify_release(release, source)))

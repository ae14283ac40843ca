"""A release whose weights are zero, as those of a damaged source, was proved: the second implementation looks too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_releases import Maker, ordinary_tensors, write_source

from flagrelease.verify.verify import verify_release

EXPERT = next(name for name in ordinary_tensors() if ".experts.1.w1.weight" in name)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A source with one blank expert matrix, and a maker of releases that follow it faithfully."""
    tensors = dict(ordinary_tensors())  # they are shared by all tests
    tensors[EXPERT] = tensors[EXPERT].clone()
    tensors[EXPERT].zero_()
    return Maker(write_source(tmp_path_factory.mktemp("damaged") / "source", tensors), tensors)


@pytest.mark.parametrize("name", ["bf16-hf", "fp8-mp4", "native-mp2"])
@pytest.mark.parametrize("with_source", [True, False])
def test_a_blank_weight_is_named(name: str, with_source: bool, damaged: Maker, tmp_path: Path) -> None:
    release = damaged.of(name).write(tmp_path / "release")
    report = verify_release(release, damaged.source if with_source else None)
    assert not report.passed
    findings = report.check("tensors").findings
    assert [finding.tensor for finding in findings] == [EXPERT]
    assert findings[0].rule.startswith("all its bytes are zero")


def test_a_blank_weight_that_the_recipe_allows_passes(damaged: Maker, tmp_path: Path) -> None:
    allowing = replace(damaged.of("native-mp2"), options={"allow_zero_tensors": ["*.experts.1.w1.weight"]})
    assert verify_release(allowing.write(tmp_path / "release"), damaged.source).passed


def test_verify_says_what_the_source_was_checked_against(maker: Maker, tmp_path: Path) -> None:
    report = verify_release(maker.of("native-hf").write(tmp_path / "release"), maker.source)
    assert "not checked against any published digest" in report.check("source").detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e8m0fnu], ids=str)
def test_blank_scales_are_named_whatever_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """F32 and F16 scales of zeros passed before: only E8M0 ones, and BF16 ones for being matrices, were looked at."""
    scale = "layers.0.attn.wq_a.scale"
    tensors = dict(ordinary_tensors())
    tensors[scale] = torch.zeros(tensors[scale].shape, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    if dtype != torch.float8_e8m0fnu:
        tensors[scale] = torch.zeros(tensors[scale].shape, dtype=dtype)
    release = Maker(write_source(tmp_path / "source", tensors), tensors).of("native-hf").write(tmp_path / "release")
    findings = verify_release(release, tmp_path / "source").check("tensors").findings
    assert [finding.tensor for finding in findings] == [scale]
    assert findings[0].rule.startswith("all its bytes are zero")

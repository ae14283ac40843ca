"""The look-up on a real GPU: the bits of the CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness import contents, plan_of, run_plan

from flagrelease.convert.codecs.decoder import Decoder
from flagrelease.convert.codecs.decoders import DECODERS
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.codecs.repack import repack_scales, repack_tables
from flagrelease.convert.codecs.tables import e8m0_tables
from flagrelease.convert.running.conversion import choose_lookup, convert

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=lambda decoder: decoder.name)
def test_every_code_under_every_scale(decoder: Decoder) -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    index = np.arange(256, dtype=np.uint8)[:, None]
    tables = e8m0_tables(decoder)
    here, there = (np.empty(codes.shape, dtype=tables.entries.dtype) for _ in range(2))
    cpu_lookup(codes, index, (1, 256), tables, here)
    choose_lookup("cuda")(codes, index, (1, 256), tables, there)
    assert np.array_equal(here, there)


def test_repack() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (200, 160), dtype=np.uint8)
    index, _ = repack_scales(rng.integers(100, 130, (200, 10), dtype=np.uint8), (128, 128))
    here, there = np.empty(codes.shape, np.uint16), np.empty(codes.shape, np.uint16)
    cpu_lookup(codes, index, (1, 16), repack_tables(), here)
    choose_lookup("cuda")(codes, index, (1, 16), repack_tables(), there)
    assert np.array_equal(here, there)


def test_a_conversion_has_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, "bf16:mp8", "fp8:hf")
    run_plan(plan, tmp_path / "cpu")
    convert(plan, tmp_path / "cuda", workers=2, lookup=choose_lookup("cuda"), progress=lambda done: None)
    assert contents(tmp_path / "cpu") == contents(tmp_path / "cuda")

"""compressed-tensors' own code decompresses what we call INT8 and channel FP8, on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import variants
from oracle import decompressed

pytestmark = [pytest.mark.slow, pytest.mark.consumers]
SOURCE = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"


@pytest.mark.parametrize(("kind", "form"), [("int", variants.channel_int8), ("float", variants.channel_fp8)])
def test_a_release_is_decompressed_to_codes_times_scales(
    consumers: Path, tmp_path: Path, kind: str, form: variants.Weight
) -> None:
    config = {"quantization_config": variants.compressed(kind, ["Linear"], [r"re:.*attn\.wo_a$"]), "expert_dtype": None}
    release = variants.write(SOURCE, tmp_path / "release", form, form, config, variants.plain)
    stored = variants.read(release)
    found = decompressed(consumers, release, tmp_path)
    scaled = [name for name in stored if f"{name}_scale" in stored]
    assert len(scaled) > 300
    for name in scaled:
        by_definition = stored[name].to(torch.float64) * stored[f"{name}_scale"].to(torch.float64)
        assert torch.equal(found[name], by_definition.to(torch.float32)), name

"""Decompresses a compressed-tensors release by that library's own code, on a CPU. Not a test; see `oracle.py`.

`decompress.py RELEASE OUT` runs with the Python of the consumers' environment: it reads quantization_config as the
library does, decompresses each weight that has a `.weight_scale`, and writes all weights to OUT as float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.naive_quantized import NaiveQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors import safe_open
from safetensors.torch import save_file


def main(release: Path, out: Path) -> None:
    document = json.loads((release / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    config = QuantizationConfig.model_validate(document)
    (scheme,) = config.config_groups.values()
    assert isinstance(scheme, QuantizationScheme)
    tensors = {}
    for file in sorted(release.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    written = {}
    for name in tensors:
        if not name.endswith(".weight"):
            continue
        scale = tensors.get(f"{name}_scale")
        if scale is None:
            written[name] = tensors[name].to(torch.float32)
        else:
            given = {"weight": tensors[name], "weight_scale": scale}
            written[name] = NaiveQuantizationCompressor.decompress(given, scheme)["weight"].to(torch.float32)
    save_file({name: value.contiguous() for name, value in written.items()}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

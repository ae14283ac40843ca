"""What compressed-tensors 0.17 makes of a release: an oracle for tests of INT8 and channel-FP8 releases."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file


def decompressed(consumers: Path, release: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """The weights of `release` in float32 by name, decompressed by the library itself.

    Args:
        consumers: the folder that `make_environment.sh` made.
        release: a folder with config.json and safetensors files, `int-quantized` or `float-quantized`.
        scratch: a folder for the file that goes between the two environments.
    """
    out = scratch / "decompressed.safetensors"
    script = Path(__file__).parent / "decompress.py"
    done = subprocess.run(
        [consumers / "venv" / "bin" / "python", script, release, out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(out)

#!/usr/bin/env bash
# torch 2.13.0 (CPU) and safetensors 0.8.0, seen on 2026-11-30.
#
# torch.distributed.checkpoint's QuantizedHuggingFaceStorageReader decodes FP8 weights whose scales are called
# `NAME.weight_scale_inv`. DeepSeek-V4 calls them `NAME.scale`. The reader does not recognise that name and returns the
# FP8 codes as numbers, without scales and without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5 safetensors==0.8.0 packaging==25.0 fsspec==2026.2.0 2>pip.log || { cat pip.log >&2; exit 1; }
env/bin/python 2>stderr >seen <<'PYTHON' || { cat stderr >&2; exit 1; }
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import load
from torch.distributed.checkpoint.quantized_hf_storage import QuantizedHuggingFaceStorageReader

codes = torch.full((128, 128), 2.0).to(torch.float8_e4m3fn)
for scale in ("layer.weight_scale_inv", "layer.scale"):
    folder = Path(scale)
    folder.mkdir()
    save_file({"layer.weight": codes, scale: torch.tensor([[8.0]])}, folder / "model.safetensors")
    names = {name: "model.safetensors" for name in ("layer.weight", scale)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    state = {"layer.weight": torch.zeros(128, 128)}
    load(state, storage_reader=QuantizedHuggingFaceStorageReader(str(folder), target_dtype=torch.float32))
    print(f"{scale}: 2.0 with scale 8.0 is read as {state['layer.weight'][0, 0].item()}")
PYTHON
cat seen
diff - seen <<'EXPECTED'
layer.weight_scale_inv: 2.0 with scale 8.0 is read as 16.0
layer.scale: 2.0 with scale 8.0 is read as 2.0
EXPECTED

#!/usr/bin/env bash
# torch 2.13.0 (CPU), seen on 2026-11-30.
#
# A tensor in an FP8 or FP4 dtype (the dtypes of DeepSeek-V4's weights and scales) can be pickled with the standard
# library, but not unpickled: `pickle.loads` raises AttributeError. Whatever sends tensors by plain pickle (Ray, queues of
# multiprocessing) fails on the receiving side. torch.save and torch.load work, and so does sending
# `tensor.view(torch.uint8)` beside the name of the dtype.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>pip.log || { cat pip.log >&2; exit 1; }
env/bin/python >seen <<'PYTHON'
import io
import pickle

import torch

for name in ("float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2"):
    tensor = torch.arange(4, dtype=torch.uint8).view(getattr(torch, name))
    data = pickle.dumps(tensor)
    try:
        pickle.loads(data)
        outcome = "unpickles"
    except AttributeError as error:
        outcome = f"AttributeError: {error}"
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer)
    equal = loaded.dtype == tensor.dtype and torch.equal(loaded.view(torch.uint8), tensor.view(torch.uint8))
    print(f"{name}: pickle: {outcome}; torch.save and torch.load: {'equal' if equal else 'different'}")
PYTHON
cat seen
diff - seen <<'EXPECTED'
float8_e4m3fn: pickle: AttributeError: type object 'torch.storage.UntypedStorage' has no attribute 'dtype'; torch.save and torch.load: equal
float8_e8m0fnu: pickle: AttributeError: type object 'torch.storage.UntypedStorage' has no attribute 'dtype'; torch.save and torch.load: equal
float4_e2m1fn_x2: pickle: AttributeError: type object 'torch.storage.UntypedStorage' has no attribute 'dtype'; torch.save and torch.load: equal
EXPECTED

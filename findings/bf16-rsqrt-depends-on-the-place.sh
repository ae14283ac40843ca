#!/usr/bin/env bash
# torch 2.13.0 (CPU build, x86_64 with AVX2 or AVX-512), seen on 2026-11-30.
#
# rsqrt of BF16 values on a CPU gives different results for the same value at different places of one tensor: the whole
# vectors at its front and the rest behind them are rounded differently. A reference computed on a CPU in BF16 (the norm
# of DeepSeek-V4's query heads is one) depends on the length of the tensor, so a comparison bit by bit needs the steps
# written out with stated roundings.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>pip.log || { cat pip.log >&2; exit 1; }
env/bin/python >seen <<'PYTHON'
import torch

torch.manual_seed(0)
values = torch.rand(1000).bfloat16() + 0.01
several = 0
for value in values:
    several += len(torch.full((33,), value.item(), dtype=torch.bfloat16).rsqrt().unique()) > 1
print("values whose rsqrt depends on the place:", "some" if several else "none")
rounded_once = values.float().rsqrt().bfloat16()
alone = torch.stack([value.float().rsqrt().bfloat16() for value in values])
print("FP32 and one rounding, at every place the same:", torch.equal(rounded_once, alone))
PYTHON
cat seen
diff - seen <<'EXPECTED'
values whose rsqrt depends on the place: some
FP32 and one rounding, at every place the same: True
EXPECTED

#!/usr/bin/env bash
# Triton 3.6.0 and 3.9.0, torch 2.13.0 (CPU), seen on 2026-12-01.
#
# In a kernel of Triton 3.6 `-x` is 0 - x, which of 0.0 makes 0.0; in Triton 3.9 it changes the sign, as IEEE 754, torch and
# Python do, so that -0.0 comes out. The same kernel therefore stores other bytes under both. Seen where codes of E4M3 are
# decoded by `tl.where(code >= 128, -value, value)`: code 128 stands for -0.0, and became 0.0 on a GPU with Triton 3.6 alone.
# Shown in the interpreter, which a machine without a GPU has.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >kernel.py <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def minus(x, y):
    at = tl.arange(0, 2)
    tl.store(y + at, -tl.load(x + at))


y = torch.ones(2)
minus[(1,)](torch.tensor([0.0, 1.0]), y)
print(triton.__version__, [format(b, "08x") for b in (y.view(torch.int32).long() & 0xFFFFFFFF).tolist()])
PYTHON
for version in 3.6.0 3.9.0; do
    python3 -m venv env
    env/bin/pip install -q --disable-pip-version-check torch==2.13.0 triton==$version numpy==2.3.5 2>pip.log ||
        { cat pip.log >&2; exit 1; }
    TRITON_INTERPRET=1 env/bin/python -W ignore kernel.py | tee -a seen
    rm -rf env
done
diff seen - <<'SEEN'
3.6.0 ['00000000', 'bf800000']
3.9.0 ['80000000', 'bf800000']
SEEN

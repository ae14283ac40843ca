#!/usr/bin/env bash
# Triton 3.9.0 with TRITON_INTERPRET=1, torch 2.13.0 (CPU), seen on 2026-11-30.
#
# Triton's interpreter runs kernels on a CPU through numpy, which has no BF16. Three things differ from any GPU: `tl.dot` of BF16
# multiplies bit patterns as integers, a cast from FP32 to BF16 cuts the mantissa off instead of rounding it to the nearest
# even, and a load of a subnormal BF16 number gives another number or zero. A kernel that passes interpreted tests with BF16
# has not been tested, unless dot and cast go through FP32 and integers there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy==2.3.5 2>pip.log || { cat pip.log >&2; exit 1; }
cat >kernels.py <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def widen(x, y):
    at = tl.arange(0, 8)
    tl.store(y + at, tl.load(x + at).to(tl.float32))


@triton.jit
def narrow(x, y):
    at = tl.arange(0, 8)
    tl.store(y + at, tl.load(x + at).to(tl.bfloat16))


@triton.jit
def product(a, b, y):
    row, column = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    at = row * 16 + column
    tl.store(y + at, tl.dot(tl.load(a + at), tl.load(b + at)))


normal = torch.tensor([0x3F80, 0x4049, -0x4080, 0x0080, 0x7F00, 0x0100, 0x3E99, 0x42C8], dtype=torch.int16)
subnormal = torch.tensor([1, 2, 3, 64, 100, 126, 127, 7], dtype=torch.int16)
for name, bits in (("normal", normal), ("subnormal", subnormal)):
    x, y = bits.view(torch.bfloat16), torch.zeros(8)
    widen[(1,)](x, y)
    print(f"{name} BF16 numbers are loaded as they are:", torch.equal(x.float(), y))
x = torch.tensor([1.0, 1.00390625, 1.005, 1.0117, 2.99, -1.006, 3.3333, 100.3])
y = torch.zeros(8, dtype=torch.bfloat16)
narrow[(1,)](x, y)
cut = (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()
print("FP32 to BF16 is rounded as torch does:", torch.equal(x.bfloat16(), y))
print("FP32 to BF16 is cut off:", torch.equal(cut, y))
torch.manual_seed(0)
a, b, y = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16(), torch.zeros(16, 16)
product[(1,)](a, b, y)
print("tl.dot of BF16 is within 1 % of the product:", bool((y - a.float() @ b.float()).norm() < 0.01 * y.norm()))
PYTHON
TRITON_INTERPRET=1 env/bin/python -W ignore kernels.py >seen
cat seen
diff - seen <<'EXPECTED'
normal BF16 numbers are loaded as they are: True
subnormal BF16 numbers are loaded as they are: False
FP32 to BF16 is rounded as torch does: False
FP32 to BF16 is cut off: True
tl.dot of BF16 is within 1 % of the product: False
EXPECTED

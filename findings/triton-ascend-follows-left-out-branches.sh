#!/usr/bin/env bash
# triton-ascend 3.2.0, seen on 2026-12-01 without CANN.
#
# Triton follows every name in a kernel before it compiles it, also in branches that a constant leaves out. triton-ascend
# has no `triton.language.extra.cuda`, so a kernel that calls something of it where it runs on NVIDIA alone is refused on
# Ascend by a Python error, though that branch would never be compiled. With the function bound to a global name first,
# None where it is missing, the same kernel becomes Triton IR and linalg (the stage behind needs CANN).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check --no-deps triton-ascend==3.2.0 pybind11==3.0.1 2>pip.log || { cat pip.log >&2; exit 1; }
cat >kernels.py <<'PYTHON'
import triton, triton.language as tl
import triton.backends.ascend.compiler as ascend
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NVIDIA = tl.constexpr(False)
wait = getattr(getattr(tl.extra, "cuda", None), "gdc_wait", None)

@triton.jit
def by_path(x_ptr):
    if NVIDIA:
        tl.extra.cuda.gdc_wait()
    tl.store(x_ptr, 1.0)

@triton.jit
def by_name(x_ptr):
    if NVIDIA:
        wait()
    tl.store(x_ptr, 1.0)

target = GPUTarget("npu", "Ascend910B3", 0)
for kernel in (by_path, by_name):
    try:
        triton.compile(ASTSource(kernel, {"x_ptr": "*fp32"}, {}), target=target)
        said = "compiled"
    except AttributeError as error:
        said = f"AttributeError: {error}"
    except Exception as error:
        said = f"as far as the stage {getattr(error, 'stage_name', type(error).__name__)}"
    print(f"{kernel.__name__}: {said}")
PYTHON
env/bin/python kernels.py 2>log | grep '^by_' >seen || { cat log >&2; exit 1; }
cat seen
diff - seen <<'EXPECTED'
by_path: AttributeError: module 'triton.language.extra' has no attribute 'cuda'
by_name: as far as the stage ConvertLinalgRToBinary
EXPECTED

#!/usr/bin/env bash
# torch 2.13.0 and torch-npu 2.13.0, seen on 2026-12-01.
#
# torch-npu registers itself among torch's backends that are loaded with torch. Where CANN is not installed, as in an image that
# is only to convert, `import torch` itself fails, also in programs that never name an NPU. TORCH_DEVICE_BACKEND_AUTOLOAD=0
# brings torch back; `import torch_npu` then still fails. So "torch cannot be imported" may be about another package.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 torch-npu==2.13.0 numpy==2.3.5 pyyaml==6.0.3 2>pip.log || { cat pip.log >&2; exit 1; }
try() {
    if "$@" >out 2>&1; then echo works; else tail -n 1 out | sed -E 's/:.*//'; fi
}
{
    echo "import torch: $(try env/bin/python -c 'import torch')"
    echo "import torch, backends not loaded: $(TORCH_DEVICE_BACKEND_AUTOLOAD=0 try env/bin/python -c 'import torch')"
    echo "import torch_npu, backends not loaded: $(TORCH_DEVICE_BACKEND_AUTOLOAD=0 try env/bin/python -c 'import torch_npu')"
} >seen
cat seen
diff - seen <<'EXPECTED'
import torch: RuntimeError
import torch, backends not loaded: works
import torch_npu, backends not loaded: ImportError
EXPECTED

#!/usr/bin/env bash
# torch 2.13.0 (CPU), gloo, seen on 2026-11-30.
#
# Collectives of gloo take BF16, int8 and uint8, and refuse FP8 (both E4M3 and E8M0), while send and recv carry FP8. Code
# that gathers quantised weights or scales over gloo must send `tensor.view(torch.uint8)`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>pip.log || { cat pip.log >&2; exit 1; }
cat >ranks.py <<'PYTHON'
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
for name in ("bfloat16", "int8", "uint8", "float8_e4m3fn", "float8_e8m0fnu"):
    tensor = torch.full((4,), rank, dtype=torch.uint8).repeat(2).view(getattr(torch, name))
    try:
        dist.all_gather([torch.empty_like(tensor) for _ in range(2)], tensor)
        gathers = "works"
    except RuntimeError:
        gathers = "RuntimeError"
    dist.barrier()
    got = torch.zeros_like(tensor)
    (dist.send(tensor, 1) if rank == 0 else dist.recv(got, 0))
    carried = rank == 0 or torch.equal(got.view(torch.uint8), torch.zeros_like(got).view(torch.uint8))
    if rank == 1:
        print(f"{name}: all_gather {gathers}, send and recv {'work' if carried else 'differ'}", flush=True)
dist.destroy_process_group()
PYTHON
env/bin/torchrun --nproc-per-node 2 ranks.py 2>stderr >seen || { cat stderr >&2; exit 1; }
cat seen
diff - seen <<'EXPECTED'
bfloat16: all_gather works, send and recv work
int8: all_gather works, send and recv work
uint8: all_gather works, send and recv work
float8_e4m3fn: all_gather RuntimeError, send and recv work
float8_e8m0fnu: all_gather RuntimeError, send and recv work
EXPECTED

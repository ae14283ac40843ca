#!/usr/bin/env bash
# torch 2.13.0 (CPU) and ml_dtypes 0.6.0, seen on 2026-11-30.
#
# A float32 beyond the range of E4M3 becomes 448 in torch 2.13 and NaN in ml_dtypes; both call the type float8_e4m3fn.
# Values from 448 to 464 round to 448 in both. A conversion that is compared with the other library must clamp to +-448
# first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5 ml_dtypes==0.6.0 2>pip.log || { cat pip.log >&2; exit 1; }
env/bin/python >seen <<'PYTHON'
import ml_dtypes
import numpy
import torch

values = numpy.array([448, 460, 464, 465, 480, 1e9, -480, numpy.inf, numpy.nan], dtype=numpy.float32)
by_torch = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
with numpy.errstate(all="ignore"):
    by_ml_dtypes = values.astype(ml_dtypes.float8_e4m3fn).astype(numpy.float32)
for value, one, other in zip(values, by_torch, by_ml_dtypes, strict=True):
    print(f"{value}: torch {one}, ml_dtypes {other}")
PYTHON
cat seen
diff - seen <<'EXPECTED'
448.0: torch 448.0, ml_dtypes 448.0
460.0: torch 448.0, ml_dtypes 448.0
464.0: torch 448.0, ml_dtypes 448.0
465.0: torch 448.0, ml_dtypes nan
480.0: torch 448.0, ml_dtypes nan
1000000000.0: torch 448.0, ml_dtypes nan
-480.0: torch -448.0, ml_dtypes nan
inf: torch 448.0, ml_dtypes nan
nan: torch nan, ml_dtypes nan
EXPECTED

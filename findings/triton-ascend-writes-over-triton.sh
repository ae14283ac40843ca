#!/usr/bin/env bash
# triton-ascend 3.2.0 beside triton, seen on 2026-11-30.
#
# Both own the folder triton. pip says nothing when the second one writes over files of the first, which then does not
# import; `pip check` stays clean; and `pip uninstall triton-ascend` takes the files that both had with it, so that what is
# left of triton is an empty package.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check --no-deps triton==3.2.0 2>pip.log || { cat pip.log >&2; exit 1; }
ask() { env/bin/python -c 'from triton import jit' >output 2>&1 && echo "imports" || tail -n 1 output | sed "s/ (.*//"; }
cat >owners.py <<'PYTHON'
import base64, csv, hashlib, importlib.metadata as m
recorded = {}
for name in ("triton", "triton-ascend"):
    files = csv.reader((m.distribution(name).read_text("RECORD") or "").splitlines())
    recorded[name] = {row[0]: row[1] for row in files if row[0].startswith("triton/") and row[1]}
shared = sorted(set(recorded["triton"]) & set(recorded["triton-ascend"]))
def digest(path):
    content = m.distribution("triton").locate_file(path).read_bytes()
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
changed = [path for path in shared if digest(path) != recorded["triton"][path]]
print(f"files that both record: {len(shared)}; of these no longer triton's: {len(changed)}")
PYTHON
{
  echo "triton alone: $(ask)"
  env/bin/pip install -q --disable-pip-version-check --no-deps triton-ascend==3.2.0 2>pip.log || { cat pip.log >&2; exit 1; }
  env/bin/python owners.py
  echo "with triton-ascend: $(ask)"
  echo "pip check: $(env/bin/pip check --disable-pip-version-check 2>&1 | tail -n 1)"
  env/bin/pip uninstall -q -y --disable-pip-version-check triton-ascend 2>/dev/null
  echo "after pip uninstall triton-ascend: $(ask)"
} >seen
cat seen
diff - seen <<'EXPECTED'
triton alone: imports
files that both record: 38; of these no longer triton's: 8
with triton-ascend: ImportError: cannot import name 'amd' from 'triton._C.libtriton'
pip check: No broken requirements found.
after pip uninstall triton-ascend: ImportError: cannot import name 'jit' from 'triton'
EXPECTED

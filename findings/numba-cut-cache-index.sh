#!/usr/bin/env bash
# numba 0.68.1, seen on 2026-11-30.
#
# A cache index (.nbi) that is cut short, as a full disk or a kill leaves it, is not ignored and not rebuilt: every later
# run of the program ends with an error of the unpickler until somebody deletes the file by hand. A program that caches
# its kernels has to catch that and compile without the cache.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check numba==0.68.1 2>pip.log || { cat pip.log >&2; exit 1; }
cat >adds.py <<'PYTHON'
import sys

import numba


@numba.njit("int64(int64)", cache=True)
def add_one(x):
    return x + 1


if __name__ == "__main__":
    print("computed", add_one(int(sys.argv[1])))
PYTHON
run() { env/bin/python adds.py 1 2>stderr || tail -n 1 stderr | sed "s/:.*//"; }
{
  echo "first run: $(run)"
  echo "second run: $(run)"
  for index in __pycache__/*.nbi; do truncate -s 20 "$index"; done
  echo "index cut to 20 bytes: $(run)"
  echo "once more: $(run)"
  rm __pycache__/*.nbi
  echo "index deleted: $(run)"
} >seen
cat seen
diff - seen <<'EXPECTED'
first run: computed 2
second run: computed 2
index cut to 20 bytes: _pickle.UnpicklingError
once more: _pickle.UnpicklingError
index deleted: computed 2
EXPECTED

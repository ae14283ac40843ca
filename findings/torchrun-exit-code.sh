#!/usr/bin/env bash
# torch 2.13.0 (CPU), seen on 2026-11-30.
#
# torchrun ends with 1 whatever code its ranks ended with, so the documented exit codes of a program are lost under it.
# The code of the rank stands only in the text of ChildFailedError on stderr.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>pip.log || { cat pip.log >&2; exit 1; }
for code in 5 7; do
  printf 'import sys\nsys.exit(%d)\n' "$code" >ends.py
  ended=0
  env/bin/torchrun --nproc-per-node 2 ends.py 2>stderr || ended=$?
  named=no
  if grep -q "exitcode *: $code" stderr; then named=yes; fi
  echo "ranks ended with $code, torchrun with $ended; named on stderr: $named"
done >seen
cat seen
diff - seen <<'EXPECTED'
ranks ended with 5, torchrun with 1; named on stderr: yes
ranks ended with 7, torchrun with 1; named on stderr: yes
EXPECTED

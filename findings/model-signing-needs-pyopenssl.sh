#!/usr/bin/env bash
# model-signing 1.1.1, seen on 2026-11-30.
#
# `model_signing` imports OpenSSL, which comes from the package pyOpenSSL; neither model-signing nor what it depends on
# asks for it any more, so a plain `pip install model-signing` cannot sign or verify. With pyOpenSSL beside it, it can.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check model-signing==1.1.1 2>pip.log || { cat pip.log >&2; exit 1; }
ask() { env/bin/python -m model_signing verify key --help >output 2>&1 && echo "works" || tail -n 1 output; }
{
  echo "after pip install model-signing: $(ask)"
  env/bin/pip install -q --disable-pip-version-check pyOpenSSL==26.4.0 2>pip.log || { cat pip.log >&2; exit 1; }
  echo "after pip install pyOpenSSL: $(ask)"
} >seen
cat seen
diff - seen <<'EXPECTED'
after pip install model-signing: ModuleNotFoundError: No module named 'OpenSSL'
after pip install pyOpenSSL: works
EXPECTED

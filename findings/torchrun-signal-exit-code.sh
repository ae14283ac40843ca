#!/usr/bin/env bash
# torch 2.13.0 (CPU), seen on 2026-11-30.
#
# torchrun sends SIGTERM and SIGINT on to its ranks, and waits for them. Although they all end with 0, as a server does that
# was asked to stop, torchrun itself raises SignalException: 26 lines of traceback, exit code 1. A supervisor takes that for a
# failure. Where only the first rank gets the signal, and the other ranks end because of it, torchrun ends with 0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>pip.log || { cat pip.log >&2; exit 1; }
cat >waits.py <<'PYTHON'
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: sys.exit(0))
open(f"pid{os.environ['RANK']}", "w").write(str(os.getpid()))
while True:
    time.sleep(0.1)
PYTHON
for name in TERM INT; do
  rm -f pid*
  env/bin/torchrun --nproc-per-node 1 waits.py 2>stderr & launcher=$!
  until test -s pid0; do sleep 0.1; done
  sleep 1
  kill -"$name" "$launcher"
  ended=0
  wait "$launcher" || ended=$?
  echo "SIG$name to torchrun, rank ended with 0: torchrun ended with $ended, tracebacks: $(grep -c '^Traceback' stderr)"
done >seen
rm -f pid*
env/bin/torchrun --nproc-per-node 1 waits.py 2>stderr & launcher=$!
until test -s pid0; do sleep 0.1; done
sleep 1
kill -TERM "$(cat pid0)"
ended=0
wait "$launcher" || ended=$?
echo "SIGTERM to the rank: torchrun ended with $ended" >>seen
cat seen
diff - seen <<'EXPECTED'
SIGTERM to torchrun, rank ended with 0: torchrun ended with 1, tracebacks: 1
SIGINT to torchrun, rank ended with 0: torchrun ended with 1, tracebacks: 1
SIGTERM to the rank: torchrun ended with 0
EXPECTED

#!/usr/bin/env bash
# flagrelease-tiny-v4 on one node of T-Head Zhenwu 810E (PPU-ZW810E).
set -euo pipefail
# bash run_mp16.sh                          serve OpenAI's API on port 8000
# bash run_mp16.sh generate --prompt TEXT   answer one prompt
release="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ "${1:-serve}" = serve ]; then
  set -- serve --name flagrelease-tiny-v4 "${@:2}"
fi
exec torchrun --nproc-per-node 16 \
  -m flagrelease "$1" "$release" "${@:2}"

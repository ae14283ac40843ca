#!/usr/bin/env bash
# flagrelease-tiny-v4 on one node of NVIDIA H20.
set -euo pipefail
# bash run_mp8.sh                          serve OpenAI's API on port 8000
# bash run_mp8.sh generate --prompt TEXT   answer one prompt
release="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ "${1:-serve}" = serve ]; then
  set -- serve --name flagrelease-tiny-v4 "${@:2}"
fi
exec torchrun --nproc-per-node 8 \
  -m flagrelease "$1" "$release" "${@:2}"

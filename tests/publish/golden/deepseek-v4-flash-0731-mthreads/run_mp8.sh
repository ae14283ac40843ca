#!/usr/bin/env bash
# DeepSeek-V4-Flash-0731 on one node of Moore Threads MTT S5000.
set -euo pipefail
# bash run_mp8.sh                          serve OpenAI's API on port 8000
# bash run_mp8.sh generate --prompt TEXT   answer one prompt
release="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ "${1:-serve}" = serve ]; then
  set -- serve --name DeepSeek-V4-Flash-0731 "${@:2}"
fi
exec torchrun --nproc-per-node 8 \
  -m flagrelease "$1" "$release" "${@:2}"

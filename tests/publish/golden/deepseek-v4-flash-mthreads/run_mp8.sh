#!/usr/bin/env bash
# DeepSeek-V4-Flash on one node of Moore Threads MTT S5000.
set -euo pipefail
# bash run_mp8.sh                          serve OpenAI's API on port 8000
# bash run_mp8.sh generate --prompt TEXT   answer one prompt
release="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
command="${1:-serve}"
options=(--numerics fp8)
if [ "$command" = serve ]; then
  options+=(--name DeepSeek-V4-Flash)
fi
exec torchrun --nproc-per-node 8 \
  -m flagrelease "$command" "$release" "${options[@]}" "${@:2}"

#!/usr/bin/env bash
# DeepSeek-V4-Flash on one node of T-Head Zhenwu 810E (PPU-ZW810E).
set -euo pipefail
# bash run_mp16.sh                          serve OpenAI's API on port 8000
# bash run_mp16.sh generate --prompt TEXT   answer one prompt
release="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
command="${1:-serve}"
options=(--numerics bf16)
if [ "$command" = serve ]; then
  options+=(--name DeepSeek-V4-Flash)
fi
exec torchrun --nproc-per-node 16 \
  -m flagrelease "$command" "$release" "${options[@]}" "${@:2}"

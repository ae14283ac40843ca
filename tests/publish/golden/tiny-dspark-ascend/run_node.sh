#!/usr/bin/env bash
# flagrelease-tiny-v4-dspark on any number of nodes: run it on each, with the same MASTER_ADDR.
set -euo pipefail
# MASTER_ADDR=10.0.0.1 NODES=2 NODE_RANK=0 bash run_node.sh
# NODE_RANK is 0 on the node of MASTER_ADDR and counts up; CARDS is the cards of a node, PORT a free port of the first.
: "${MASTER_ADDR:?the address of the first node}"
: "${NODE_RANK:?the number of this node, from 0}"
nodes="${NODES:-2}"
cards="${CARDS:-8}"
if [ "$((nodes * cards))" -ne 16 ]; then
  echo "NODES x CARDS must be 16, the ranks this release is cut for; it is $nodes x $cards" >&2
  exit 2
fi
release="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ "${1:-serve}" = serve ]; then
  set -- serve --name flagrelease-tiny-v4-dspark "${@:2}"
fi
exec torchrun --nnodes "$nodes" --node-rank "$NODE_RANK" --nproc-per-node "$cards" \
  --master-addr "$MASTER_ADDR" --master-port "${PORT:-29500}" \
  -m flagrelease "$1" "$release" "${@:2}"

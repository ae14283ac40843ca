#!/usr/bin/env bash
# make_environment.sh FOLDER makes the environment FOLDER/ray: Ray, and what flagrelease needs to convert, also from a hub.
# The tests in this folder start clusters of two nodes in it (pytest -m cluster --ray FOLDER). It takes a minute and 0.7 GB.
# shellcheck source=tests/environments.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environments.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
into ray ray==2.60.0 -e "$root[publish]" -c "$root/constraints.txt"
"$folder/ray/bin/python" -m pip --disable-pip-version-check check

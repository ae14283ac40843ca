"""What launch.py starts for each rank: `python -m flagrelease.ranks.member PARENT WORD...` runs `flagrelease WORD...`.

PARENT is the process id of whoever started it: the rank ends with that process.
"""

from __future__ import annotations

import runpy
import sys

from flagrelease.ranks.lifetime import begin_launched_rank

if __name__ == "__main__":
    parent, *words = sys.argv[1:]
    begin_launched_rank(int(parent))
    sys.argv[1:] = words
    runpy.run_module("flagrelease", run_name="__main__", alter_sys=True)

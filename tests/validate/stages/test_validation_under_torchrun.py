"""Two ranks of one job: the first does the stages, the second holds its half of the model until it is let go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_validation import PASSED, Workshop, stage_of, verdicts

pytestmark = pytest.mark.slow


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def on_two_ranks(words: list[str], *, torchrun: bool = False) -> subprocess.CompletedProcess[str]:
    """Started by flagrelease itself, or by torchrun."""
    command = [*TORCHRUN, "-m", "flagrelease", *words] if torchrun else ["-m", "flagrelease", *words, "--ranks", "2"]
    return subprocess.run(
        [sys.executable, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=400, check=False,
    )  # fmt: skip


def test_a_baseline_and_a_validation_on_two_ranks(workshop: Workshop, tmp_path: Path) -> None:
    recorded = on_two_ranks(workshop.recording(tmp_path / "baseline"))
    assert recorded.returncode == 0, recorded.stderr[-2000:]
    out = tmp_path / "out"
    words = workshop.validation(workshop.release("bf16"), out, "--baseline", str(tmp_path / "baseline"))
    done = on_two_ranks(words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert verdicts(out) == PASSED
    assert done.stdout.count(" for ascend") == done.stderr.count("behaviour: 12 answers in ") == 1, "one rank talks"
    assert done.stderr.count("logits: 172 tokens in ") == 1
    assert "2 x " in stage_of(out, "behaviour")["figures"]["native_stack"]
    again = on_two_ranks(words, torchrun=True)  # everything is finished: the second rank must not wait for ever
    assert again.returncode == 0, again.stderr[-2000:]

"""`make test-gpu` must not pass by skipping, and marks must hold: tests of this folder as pytest runs them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONE = "tests/convert/test_gpu.py"  # tests of a GPU only


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", ONE, *words]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=120, check=False)


def test_asked_for_without_a_device_they_are_an_error() -> None:
    done = run("-m", "gpu")
    assert done.returncode == 4
    assert "tests need a CUDA device, and torch sees none" in done.stderr


def test_another_choice_leaves_them_out_names_them_and_runs_the_others() -> None:
    done = run("tests/unit/test_release_formats.py", "-m", "not slow")
    assert done.returncode == 0, done.stdout
    assert "needs a CUDA device" in done.stdout
    assert "passed" in done.stdout


def marked_twice(source: str) -> bool:
    """Whether a module sets `pytestmark` twice: pytest sees only the last one."""
    names = [target.id for node in ast.parse(source).body if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)]  # fmt: skip
    return names.count("pytestmark") > 1


def test_no_module_loses_its_marks() -> None:
    """The dearest file of all ran in CI for weeks: a second line had taken its `slow` away."""
    assert marked_twice("pytestmark = 1\nx = 2\npytestmark = 3")
    assert not [path for path in (ROOT / "tests").rglob("test_*.py") if marked_twice(path.read_text())]

"""Kernels compile for chips that are not here: one of NVIDIA and one of AMD at every run, the others in slow tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from changed_files import changed_files

ROOT = Path(__file__).parents[2]
# Of AMD's, whose compiler takes several times as long: one kernel of each kind (E4M3 codes out of numbers and numbers
# out of codes, products of codes, index arithmetic, whole rows), and the kernels that were changed.
AMD = ("act_quant", "token_quant", "add", "rms_norm", "pack_index_keys")
EMBEDDING = "flagrelease/engine/kernels/linear/embedding.py"


def compiled(target: str, *arguments: str, also_changed: tuple[str, ...] = ()) -> dict[str, Any]:
    script = Path(__file__).parent / "compile_cases.py"
    command = [sys.executable, str(script), target, *arguments, "--changed", *also_changed, *changed_files(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    outcome: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    # Its two branches have one name of two shapes, which the interpreter lets pass.
    assert "Mismatched type for at" in outcome["failures"].pop("planted")
    return outcome


@pytest.mark.parametrize("dtype", ["other", pytest.param("float32", marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_hopper(dtype: str) -> None:
    outcome = compiled("cuda:90", "--dtype", dtype)
    assert outcome["launches"] > outcome["cases"] > 80
    assert outcome["failures"] == {}


def test_kernels_of_each_kind_compile_for_amd() -> None:
    outcome = compiled("hip:gfx942", *AMD, "--dtype", "other", also_changed=(EMBEDDING,))
    assert outcome["launches"] >= outcome["cases"] > len(AMD)
    assert "embedding" in outcome["first"] or len(outcome["first"]) == 6
    assert outcome["failures"] == {}


def git(root: Path, *words: str) -> None:
    command = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org", *words]
    subprocess.run(command, check=True, capture_output=True)


def test_changed_files_are_those_since_the_branch_was_left_or_of_the_last_commit(tmp_path: Path) -> None:
    """In a folder of a repository, paths are the folder's; an archive and a first commit have no changes."""
    folder = tmp_path / "in"
    folder.mkdir()
    assert changed_files(folder) == []
    git(tmp_path, "init", "-q", "-b", "main")
    for name in ("a", "b", "c"):
        (folder / name).write_text(name)
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", name)
        assert changed_files(folder) == ([] if name == "a" else [name])
    git(tmp_path, "checkout", "-q", "-b", "work", "HEAD~1")
    for name in ("d", "e"):
        (folder / name).write_text(name)
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", name)
    (folder / "a").write_text("changed, and in no commit")
    assert changed_files(folder) == ["a", "d", "e"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "target", ["cuda:80", "cuda:100", "cuda:120", "hip:gfx90a", "hip:gfx942", "hip:gfx950", "hip:gfx1201"]
)
def test_every_kernel_compiles_for(target: str) -> None:
    assert compiled(target)["failures"] == {}

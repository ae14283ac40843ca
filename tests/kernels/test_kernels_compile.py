"""Kernels compile for chips that are not here: one of NVIDIA and one of AMD at every run, the others in slow tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Of AMD's, whose compiler takes several times as long: one kernel of each kind (E4M3 codes out of numbers and numbers
# out of codes, products of codes, index arithmetic, whole rows).
AMD = ("act_quant", "token_quant", "add", "rms_norm", "pack_index_keys")


def compiled(target: str, *arguments: str) -> dict[str, Any]:
    script = Path(__file__).parent / "compile_cases.py"
    command = [sys.executable, str(script), target, *arguments]
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
    outcome = compiled("hip:gfx942", *AMD, "--dtype", "other")
    assert outcome["launches"] >= outcome["cases"] >= len(AMD)
    assert outcome["failures"] == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "target", ["cuda:80", "cuda:100", "cuda:120", "hip:gfx90a", "hip:gfx942", "hip:gfx950", "hip:gfx1201"]
)
def test_every_kernel_compiles_for(target: str) -> None:
    assert compiled(target)["failures"] == {}

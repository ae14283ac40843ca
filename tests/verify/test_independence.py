"""The proof must not rest on what it proves: `verify` imports neither the converter nor torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import flagrelease.verify


def test_no_file_imports_the_converter() -> None:
    files = sorted(Path(flagrelease.verify.__path__[0]).glob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("flagrelease.convert") for name in names), path


def test_verify_loads_neither_converter_nor_torch() -> None:
    code = "import sys, flagrelease.verify.verify, flagrelease.verify.ties; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = result.stdout.split()
    assert "flagrelease.verify.decoder" in loaded
    assert not {"torch", "numba", "safetensors"} & set(loaded)
    assert not [name for name in loaded if name.startswith("flagrelease.convert")]

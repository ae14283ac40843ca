"""SGLang's own table of names, taken out of its wheel: its model needs a GPU, the function that renames does not."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import pytest
from release_headers import releases

from flagrelease.chips.loading.methods import hold
from flagrelease.chips.loading.rules import load_loaders

pytestmark = [pytest.mark.slow, pytest.mark.consumers]
RENAME = "remap_weight_name_to_dpsk_hf_format"


def sglangs_own(consumers: Path) -> Callable[[str], str]:
    (file,) = consumers.glob("venv/lib/python*/site-packages/sglang/srt/models/deepseek_v4.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == RENAME)
    function.decorator_list = []
    names: dict[str, object] = {"Optional": Optional}
    exec(compile(ast.Module([function], []), str(file), "exec"), names)
    found = names[RENAME]
    assert callable(found)
    return found


@pytest.mark.parametrize("form", ["native", "fp8", "fp8-bf16-wo-a", "bf16", "int8", "int8-experts", "fp8-channel"])
def test_the_names_are_sglangs_own(consumers: Path, form: str) -> None:
    release = releases()[form]
    rename = hold(load_loaders()["sglang"], release, load_loaders()["sglang"].environment).rename
    own = sglangs_own(consumers)
    names = [name for name in release.tensors if not name.startswith("mtp.")]  # its draft is a loader of its own
    assert {name: rename(name) for name in names} == {name: own(name) for name in names}

"""Which part may import which: held by a walk over the source, so that an edge that is not allowed fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "flagrelease"

# part -> parts it may import. A part is a folder, or a file at the top.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "strict_json": set(),
    "shard": {"errors", "strict_json"},
    "model": {"errors", "strict_json"},
    "chips": {"errors"},
    "device": {"errors", "chips"},
    "manifest": {"errors"},
    "provenance": {"errors", "manifest", "strict_json"},
    "hubs": set(),
    "recipe": {"errors", "chips", "manifest", "validation_rules"},
    "validation_rules": set(),
    "validation_report": {"errors", "manifest", "validation_rules"},
    "synthetic": {"model", "shard"},
    "convert": {"errors", "shard", "model", "chips", "device", "hubs", "manifest", "recipe", "strict_json", "__init__"},
    "engine": {"errors", "shard", "model", "chips", "device", "manifest", "__init__"},
    "validate": {
        "errors",
        "shard",
        "model",
        "chips",
        "console",
        "device",
        "manifest",
        "provenance",
        "recipe",
        "engine",
        "strict_json",
        "validation_rules",
        "validation_report",
        "__init__",
    },
    "publish": {
        "errors",
        "chips",
        "console",
        "hubs",
        "manifest",
        "provenance",
        "recipe",
        "shard",
        "validation_report",
        "__init__",
    },
    "pipeline": {
        "errors",
        "chips",
        "console",
        "convert",
        "hubs",
        "manifest",
        "publish",
        "recipe",
        "validate",
        "validation_report",
        "validation_rules",
    },
    "bench": {"errors", "chips", "console", "device", "engine", "model", "__init__"},
    "console": set(),
    "reports": {"console", "convert", "manifest", "validate"},
    "cli": {
        "errors",
        "bench",
        "console",
        "reports",
        "convert",
        "validate",
        "engine",
        "manifest",
        "pipeline",
        "publish",
        "__init__",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
# Loading these costs a second or gigabytes; only what runs them may name them at the top of a file.
HEAVY = {
    "torch": {
        "bench",
        "engine",
        "convert/gpu.py",
        *(f"validate/logits/{name}.py" for name in ("baseline", "distribution", "layers", "record", "replay")),
    },
    "triton": {"engine"},
    "numba": {"convert/lookup.py"},
    "transformers": set(),
    "lm_eval": {f"validate/benchmarks/harness/{name}.py" for name in ("__main__", "evaluation", "model")},
    "datasets": set(),
    "openai": set(),
    "huggingface_hub": set(),
    "modelscope_hub": set(),
    "cryptography": set(),
}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def edges(path: Path, source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "flagrelease" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            words = name.split(".")
            if words[0] == "flagrelease" and len(words) > 1:
                part = words[1]
                known = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
                found.add(part if known else "__init__")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    part = part_of(path)
    extra = edges(path, path.read_text(encoding="utf-8")) - ALLOWED[part] - {part}
    assert not extra, f"{path} imports {extra}"


def test_the_walk_sees_a_forbidden_import() -> None:
    path = PACKAGE / "validate" / "x.py"
    assert edges(path, "from flagrelease.convert.formats import FP8\n") == {"convert"}
    assert edges(path, "def f():\n    import flagrelease.convert.plan\n") == {"convert"}
    assert edges(path, "from flagrelease import __version__, convert\n") == {"__init__", "convert"}
    assert "convert" not in ALLOWED["validate"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_modules_are_loaded_where_they_are_used(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            allowed = HEAVY.get(name.split(".")[0])
            assert allowed is None or part_of(path) in allowed or relative in allowed, f"{path} imports {name}"

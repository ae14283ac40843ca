"""Which part may import which: held by a walk over the source, so that an edge that is not allowed fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "flagrelease"

# part -> parts it may import. A part is a folder, a file at the top, or a folder inside one that stands lower than it.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "strict_json": set(),
    "plain_yaml": set(),
    "extras": {"errors"},
    "console": {"whole_words"},
    "whole_words": set(),
    "concurrently": set(),
    "once": set(),
    "event_lines": set(),
    "redaction": set(),
    "page": set(),
    "retry": {"errors", "redaction"},
    "server_address": {"errors"},
    "log_file": {"errors", "redaction"},
    "durable": {"errors"},
    "shard": {"errors", "durable", "strict_json"},
    "formats": {"errors", "shard"},
    "model": {"errors", "formats", "plain_yaml", "shard", "strict_json"},
    "chips": {"errors", "plain_yaml", "publish/hubs"},
    "chips/loading": {"chips", "errors", "formats", "model", "plain_yaml", "shard", "strict_json"},
    "chips/listing": {"chips", "console", "formats", "model", "plain_yaml", "records"},
    "publish/hubs": {"errors"},
    "publish/reading": {"errors", "extras", "publish/hubs", "redaction", "retry"},
    "accelerator": {"errors"},
    "device": {"accelerator", "errors", "chips"},
    "ranks": {"device", "durable", "errors", "log_file"},
    "records": {"errors", "chips", "formats", "publish/hubs", "shard", "strict_json"},
    "source": {"errors", "formats", "model", "publish/hubs", "records", "retry", "shard", "strict_json"},
    "source/hub": {"errors", "publish/hubs", "publish/reading", "shard"},
    "convert/codecs": {"device", "errors", "formats", "once"},
    "convert/planning": {
        "__init__",
        "convert/codecs",
        "errors",
        "formats",
        "model",
        "publish/hubs",
        "records",
        "shard",
        "source",
        "strict_json",
    },
    "convert/running": {
        "__init__",
        "convert/codecs",
        "convert/planning",
        "device",
        "durable",
        "errors",
        "formats",
        "model",
        "records",
        "shard",
        "source",
    },
    "convert/sharing": {
        "__init__",
        "console",
        "convert/codecs",
        "convert/planning",
        "convert/running",
        "durable",
        "errors",
        "extras",
        "records",
        "shard",
        "source",
    },
    "convert/disk": {
        "console",
        "convert/codecs",
        "convert/planning",
        "convert/running",
        "errors",
        "publish",
        "publish/hubs",
        "records",
        "source",
    },
    "convert": {
        "chips",
        "chips/loading",
        "console",
        "convert/disk",
        "convert/planning",
        "convert/running",
        "convert/sharing",
        "errors",
        "formats",
        "model",
        "publish/hubs",
        "records",
        "shard",
        "source",
        "source/hub",
    },
    "verify": {
        "__init__",
        "chips",
        "chips/loading",
        "console",
        "errors",
        "formats",
        "model",
        "once",
        "publish/hubs",
        "records",
        "shard",
        "source/hub",
        "strict_json",
    },
    "engine": {
        "__init__",
        "accelerator",
        "chips",
        "concurrently",
        "console",
        "device",
        "durable",
        "errors",
        "extras",
        "formats",
        "model",
        "ranks",
        "records",
        "shard",
        "strict_json",
    },
    "validate": {
        "__init__",
        "chips",
        "concurrently",
        "console",
        "device",
        "durable",
        "engine",
        "errors",
        "event_lines",
        "extras",
        "model",
        "page",
        "plain_yaml",
        "ranks",
        "records",
        "redaction",
        "retry",
        "server_address",
        "shard",
        "strict_json",
        "verify",
    },
    "diff": {"console", "errors", "records", "strict_json"},
    "publish": {
        "__init__",
        "chips",
        "chips/loading",
        "console",
        "errors",
        "extras",
        "formats",
        "model",
        "plain_yaml",
        "publish/hubs",
        "publish/reading",
        "records",
        "redaction",
        "retry",
        "shard",
        "strict_json",
    },
    "site": {
        "__init__",
        "chips",
        "console",
        "diff",
        "durable",
        "errors",
        "page",
        "publish",
        "publish/hubs",
        "records",
        "validate",
    },
    "run": {
        "__init__",
        "chips",
        "console",
        "convert",
        "convert/planning",
        "convert/running",
        "device",
        "diff",
        "durable",
        "errors",
        "extras",
        "publish",
        "publish/hubs",
        "ranks",
        "records",
        "source",
        "source/hub",
        "validate",
    },
    "status": {"chips", "console", "errors", "publish", "publish/hubs", "records"},
    "doctor": {"chips", "chips/listing", "console", "errors", "plain_yaml", "publish/hubs", "redaction"},
    "bench": {
        "__init__",
        "chips",
        "concurrently",
        "console",
        "device",
        "engine",
        "errors",
        "event_lines",
        "extras",
        "model",
        "ranks",
        "redaction",
        "server_address",
    },
    "commands": {
        "bench",
        "chips/listing",
        "convert",
        "diff",
        "doctor",
        "engine",
        "publish",
        "run",
        "site",
        "status",
        "validate",
        "verify",
    },
    "cli": {"__init__", "commands", "console", "errors", "extras", "log_file", "ranks"},
    "__main__": {"cli"},
    "__init__": set(),
}
INNER = {part for part in ALLOWED if "/" in part}
# Loading these costs a second or gigabytes; only what runs them may name them at the top of a file.
HEAVY = {
    "torch": {
        "bench",
        "engine",
        "convert/codecs/gpu.py",
        *(f"validate/logits/{name}.py" for name in ("baseline", "distribution", "layers", "record", "replay")),
    },
    "triton": {"engine"},
    "llvmlite": {"convert/codecs/native.py"},
    "numba": {"convert/codecs/row_loops.py"},
    "transformers": set(),
    "lm_eval": {f"validate/exams/harness/{name}.py" for name in ("__main__", "evaluation", "model")},
    "datasets": set(),
    "openai": set(),
    "huggingface_hub": set(),
    "modelscope_hub": set(),
    "cryptography": set(),
    "ray": {"convert/sharing/ray_cluster.py"},
}


def part_of(path: Path) -> str:
    return part_named(path.relative_to(PACKAGE).with_suffix("").parts)


def part_named(words: tuple[str, ...]) -> str:
    """The part of a file or module, by its path inside the package."""
    inner = "/".join(words[:2])
    return inner if inner in INNER else words[0]


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
                known = (PACKAGE / words[1]).is_dir() or (PACKAGE / f"{words[1]}.py").is_file()
                found.add(part_named(tuple(words[1:])) if known else "__init__")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    part = part_of(path)
    extra = edges(path, path.read_text(encoding="utf-8")) - ALLOWED[part] - {part}
    assert not extra, f"{path} imports {extra}"


def test_the_walk_sees_a_forbidden_import() -> None:
    path = PACKAGE / "validate" / "x.py"
    assert edges(path, "from flagrelease.convert.commands import plan\n") == {"convert"}
    assert edges(path, "def f():\n    import flagrelease.convert.planning.plan\n") == {"convert/planning"}
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

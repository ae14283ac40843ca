"""Small releases with random bytes, as `convert` writes them, and reports as `validate` does."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.records.manifest import (
    ElementCounts,
    FileRecord,
    Manifest,
    SourceFileRecord,
    SourceRecord,
    TargetRecord,
    TensorRecord,
    ToolRecord,
)
from flagrelease.records.recipe import read_recipe

_DSPARK = ("mtp.0.main_proj.weight", "mtp.1.attn_norm.weight", "mtp.2.markov_head.markov_w1.weight")
_DRAFTS = (
    dict.fromkeys(("deepseek-v4-flash-0731", "deepseek-v4-pro-0813", "tiny-dspark"), _DSPARK)
    | dict.fromkeys(("deepseek-v4-flash", "deepseek-v4-pro", "tiny"), ("mtp.0.e_proj.weight",))
    | {"deepseek-v4.1-flash": (*_DSPARK[:2], "mtp.2.markov_head.embed.weight")}
)
RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class Converted:
    """A small checkpoint and what `convert` made of it; nobody writes to either."""

    source: Path
    release: Path
    chip: str


def manifest_of(
    recipe_name: str, chip: str, files: tuple[FileRecord, ...], licence: str | None = None, release: str | None = None
) -> Manifest:
    """Of one release of the chip, as `fp8-hf`; the one that is cut for ranks if none is named."""
    recipe = read_recipe(RECIPES / f"{recipe_name}.yaml")
    document = recipe.model_dump(mode="json", exclude={"validation"})
    del document["source"]["path"]
    spec = next(one for one in recipe.releases[chip] if release == one.name or (not release and one.layout != "hf"))
    mp = int(spec.layout.removeprefix("mp")) if spec.layout != "hf" else None
    return Manifest(
        tool=ToolRecord(version="0.1.0"),
        model=recipe.model,
        target=TargetRecord(
            dtype=spec.format,
            layout="mp" if mp else "hf",
            mp=mp,
            o_groups=spec.o_groups if mp == 16 or mp == 64 else None,
            drafts=spec.drafts,
        ),
        source=SourceRecord(
            repo=recipe.source.repo,
            revision=recipe.source.revision,
            license=licence or recipe.source.license,
            identity="1" * 64,
            headers_sha256="1" * 64,
            contents_blake3="1" * 64,
            config_sha256="2" * 64,
            files=(SourceFileRecord(path="model-00001-of-00001.safetensors", size=1000, header_sha256="3" * 64),),
            tensors={"embed.weight": "4" * 64},
        ),
        recipe=document,
        options={"max_file_bytes": 5 * 10**9, "rank_part_bytes": None, "lossy_repack": "refuse"},
        plan="5" * 64,
        elements=ElementCounts(copied=1000, exact=2000),
        inexact={},
        files=files,
        tensors={
            name: TensorRecord(dtype="BF16", shape=(8, 4), blake3="6" * 64)
            for name in ("embed.weight", *(_DRAFTS[recipe_name] if spec.drafts == "keep" else ()))
        },
    )


def write_release(
    folder: Path,
    recipe: str = "deepseek-v4-flash",
    chip: str = "nvidia",
    size: int = 3 << 18,
    ranks: int = 2,
    more: dict[str, bytes] | None = None,
) -> Path:
    """A release of `ranks` tensor files of `size` random bytes and the usual companions."""
    generator = random.Random(f"{recipe} {chip}")
    contents = {f"model{rank}-mp8.safetensors": generator.randbytes(size + rank) for rank in range(ranks)}
    contents |= {
        "LICENSE": b"MIT License\n",
        "README.md": b"---\nlicense: mit\n---\n# the source's card\n",
        "config.json": b'{"model_type": "deepseek_v4"}\n',
        "encoding/encoding_dsv4.py": b"# the prompt format\n",
        "inference/config.json": b"{}\n",
        "empty.txt": b"",
        **(more or {}),
    }
    records = []
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        records.append(FileRecord(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    (folder / "manifest.json").write_bytes(manifest_of(recipe, chip, tuple(records)).to_json())
    return folder


def report_for(manifest: bytes, chip: str, **changes: Any) -> dict[str, Any]:
    score = {"value": 70.2, "low": 66.1, "high": 74.0, "confidence": 0.95}
    return {
        "schema_version": 1,
        "tool": {"name": "flagrelease", "version": "0.1.0"},
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "chip": chip,
        "verdict": "pass",
        "rules": {"stages": ["integrity", "weights"]},
        "stages": [
            {"name": "integrity", "verdict": "pass", "detail": "12 files, every byte hashed."},
            {
                "name": "weights",
                "verdict": "pass",
                "detail": "3,000 elements recomputed bit by bit; none differs.",
                "proves": ["Every tensor is what a second decoder makes of the source."],
                "leaves_open": ["Whether an engine computes with the weights as it should."],
                "figures": {"checks": [{"name": "tensors", "status": "pass"}, {"name": "source", "status": "pass"}]},
            },
        ],
        "environment": {"torch": "2.9.0", "device": "one of the chip"},
        "benchmarks": [
            {
                "task": "GPQA Diamond",
                "dataset": "Idavidrein/gpqa",
                "revision": "633f5ee89ab8ac4522a9f850766b73f62147ffdd",
                "metric": "accuracy",
                "unit": "%",
                "n": 198,
                "repeats": 8,
                "mode": "thinking, temperature 0.6, top-p 0.95, at most 32768 tokens",
                "chip": score,
                "native": score | {"value": 69.7},
                "native_stack": "H20 x 8, flagrelease 0.1.0, native FP4 + FP8",
                "rule": "paired by question: not worse than native by 3 points, at 95 %",
                "verdict": "pass",
            }
        ],
    } | changes


def write_report(release: Path, path: Path, chip: str = "nvidia", **changes: Any) -> Path:
    path.write_text(json.dumps(report_for((release / "manifest.json").read_bytes(), chip, **changes)))
    return path

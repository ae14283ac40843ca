"""Records of hf releases in any format, whose headers are made from the fact sheet and not by the converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from publish_release import RECIPES, manifest_of, report_for
from release_headers import releases

from flagrelease.chips.table import get_chip
from flagrelease.publish.hubs.registry import find_licence
from flagrelease.publish.records import Records
from flagrelease.records.chip_releases import ReleaseSpec
from flagrelease.records.manifest import Dtype, FileRecord, TargetRecord, TensorRecord
from flagrelease.records.recipe import read_recipe
from flagrelease.records.report import parse_report

HEADERS = releases()


def records_of_format(
    folder: Path, chip: str, name: Dtype, stack: str | None = None, size: int = 5 * 10**9, **manifest: Any
) -> Records:
    """Flash as an hf release for one chip, in files of 5 GB, with the small model's headers; `manifest` changes it."""
    headers = HEADERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(headers.config)))
    if headers.description is not None:
        (folder / "quant_model_description.json").write_text(json.dumps(dict(headers.description)))
    count = -(-size // (5 * 10**9))
    stem = "model" if headers.description is None else "quant_model_weights"
    paths = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    files = [FileRecord(path=path, size=5 * 10**9, sha256="7" * 64) for path in paths]
    files += [FileRecord(path=path.name, size=1, sha256="7" * 64) for path in sorted(folder.iterdir())]
    files.append(FileRecord(path=f"{stem}.safetensors.index.json", size=1, sha256="7" * 64))
    recipe = read_recipe(RECIPES / "deepseek-v4-flash.yaml")
    spec = ReleaseSpec(format=name, layout="hf", stack=stack)
    content = b"{}\n"
    cut = manifest_of("deepseek-v4-flash", "nvidia", tuple(files))
    tensors = {n: TensorRecord(dtype=d, shape=shape, blake3="6" * 64) for n, (d, shape) in headers.tensors.items()}
    target = TargetRecord(dtype=name, layout="hf", mp=None, o_groups=None)
    return Records(
        folder,
        cut.model_copy(update={"target": target, "tensors": tensors, **manifest}),
        content,
        recipe.model_copy(update={"releases": {chip: (spec,)}}),
        get_chip(chip),
        find_licence("MIT"),
        parse_report(json.dumps(report_for(content, chip)).encode(), "report.json"),
        b"{}",
    )

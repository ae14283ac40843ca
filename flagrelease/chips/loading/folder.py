"""A folder as a loader sees it before it reads weights: config.json, the description, headers, names of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flagrelease.chips.loading.release import Release
from flagrelease.errors import CheckpointError
from flagrelease.formats.releases import MODELSLIM_DESCRIPTION
from flagrelease.shard.header import read_header
from flagrelease.strict_json import parse_json


def release_in(folder: Path) -> Release:
    """The release in `folder`, of layout hf.

    Raises:
        CheckpointError: config.json is missing, a file is no JSON object or breaks the format of safetensors, or a
            tensor is in two files.
    """
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    files = frozenset(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else frozenset()
    for name in sorted(file for file in files if file.endswith(".safetensors")):
        for meta in read_header(folder / name).tensors.values():
            if meta.name in tensors:
                raise CheckpointError(f"{folder / name}: tensor {meta.name!r} is in another file too")
            tensors[meta.name] = (meta.dtype, meta.shape)
    described = _object(folder / MODELSLIM_DESCRIPTION) if MODELSLIM_DESCRIPTION in files else None
    return Release(_object(folder / "config.json"), described, tensors, files)


def _object(path: Path) -> dict[str, Any]:
    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(document).__name__}")
    return document

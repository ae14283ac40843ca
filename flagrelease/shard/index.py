"""`CheckpointIndex`: every tensor of a checkpoint, from the headers of its safetensors files alone.

The index file, the headers and the list of files must agree; whatever does not is refused (or, for `inspect`, listed).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.shard.files import CheckpointFiles, Told
from flagrelease.shard.folder import in_folder
from flagrelease.shard.header import Header, TensorMeta
from flagrelease.shard.impostors import impostor
from flagrelease.strict_json import parse_json

INDEX_SUFFIX = ".safetensors.index.json"
INDEX_NAME = f"model{INDEX_SUFFIX}"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@dataclass(frozen=True, slots=True)
class CheckpointIndex:
    """The tensors of a checkpoint by name, in the order of files and of offsets in them.

    `remarks`: what is unusual in the index file and no reason to refuse it, as sentences.
    """

    headers: tuple[Header, ...] = field(repr=False)
    tensors: dict[str, TensorMeta] = field(repr=False)
    declared_total_size: int | None
    remarks: tuple[str, ...] = ()

    @property
    def total_size(self) -> int:
        """Bytes of all tensors."""
        return sum(meta.nbytes for meta in self.tensors.values())

    def headers_sha256(self) -> str:
        """SHA-256 over names, sizes and header bytes of all files: changes with any name, shape, dtype or offset.

        It says nothing of the values: `records.source_identity` tells two checkpoints of one architecture apart.
        """
        digest = hashlib.sha256()
        for header in self.headers:
            own = hashlib.sha256(header.raw).hexdigest()
            digest.update(f"{header.file.name}\n{header.file_size}\n{own}\n".encode())
        return digest.hexdigest()


def open_checkpoint(folder: Path, index_name: str = INDEX_NAME) -> CheckpointIndex:
    """Read all headers of `folder` and require that the index file called `index_name`, headers and folder agree.

    Raises:
        CheckpointError: the first disagreement, a bad header, a pickle file, or a folder without safetensors files.
    """
    return open_files(in_folder(folder), index_name)


def open_files(files: CheckpointFiles, index_name: str = INDEX_NAME) -> CheckpointIndex:
    """`open_checkpoint` wherever the files are."""
    index, problems = survey(files, index_name=index_name)
    if problems:
        raise CheckpointError(problems[0])
    return index


def survey(
    files: CheckpointFiles, told: Told = lambda done, total: None, index_name: str = INDEX_NAME
) -> tuple[CheckpointIndex, list[str]]:
    """Like `open_checkpoint`, but returns disagreements between index, headers and files as a list of sentences.

    `told(done, total)` is called after each header that was read: V4-Pro's 64 take seconds. `index_name` is the name of
    the index file, which is another one in ModelSlim's releases.

    Raises:
        CheckpointError: nothing can be said: no checkpoint, no safetensors file, a header that breaks the format.
    """
    names, root = files.names(), files.root
    shards = [name for name in names if "/" not in name and PurePosixPath(name).suffix == ".safetensors"]
    if not shards:
        raise CheckpointError(f"{root}: no *.safetensors file in it")
    problems = _strangers(root, names)
    remarks: list[str] = []
    content = files.find(index_name)
    weight_map, declared = None, None
    if content is not None:
        weight_map, declared = _read_index(root / index_name, content, problems, remarks)
    headers = files.headers(shards, told)
    tensors: dict[str, TensorMeta] = {}
    for header in headers:
        for name, meta in header.tensors.items():
            if name in tensors:
                problems.append(f"tensor {name!r} is in both {tensors[name].file} and {meta.file}")
            else:
                tensors[name] = meta
    if weight_map is not None:
        problems += _compare(root, weight_map, tensors, set(shards))
    elif len(shards) > 1:
        problems.append(f"{root / index_name}: not found, though the folder has {len(shards)} safetensors files")
    index = CheckpointIndex(tuple(headers), tensors, declared, tuple(remarks))
    if declared is not None and declared != index.total_size:
        problems.append(f"{root / index_name}: total_size is {declared}, the headers sum to {index.total_size}")
    return index, problems


def _strangers(root: PurePath, names: Sequence[str]) -> list[str]:
    files = [PurePosixPath(name) for name in names]
    problems = [
        f"{root / path}: pickle files can run code when read; remove it"
        for path in files
        if path.suffix.lower() in _PICKLES
    ]
    problems += [
        f"{root / path}: in a sub-folder, where no index names it; a checkpoint has its tensors in one folder"
        for path in files
        if path.suffix == ".safetensors" and len(path.parts) > 1
    ]
    return problems


def _read_index(
    path: PurePath, content: bytes, problems: list[str], remarks: list[str]
) -> tuple[dict[str, str], int | None]:
    try:
        document = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: {impostor(content, path) or f'not valid JSON ({error})'}") from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{path}: weight_map must map tensor names to file names")
    first_in = {file: name for name, file in reversed(weight_map.items())}  # 145,000 tensors are in 64 files
    for file, name in first_in.items():
        pure = PurePosixPath(file)
        if pure.is_absolute() or len(pure.parts) != 1 or pure.name in {"..", "."} or "\\" in file:
            raise CheckpointError(f"{path}: tensor {name!r}: {file!r} is not a file name inside the folder")
    return weight_map, _declared_size(document, path, problems, remarks)


def _declared_size(document: dict[str, Any], path: PurePath, problems: list[str], remarks: list[str]) -> int | None:
    """The sum that the index states. DeepSeek's older scripts leave it out, and other tools write it as a float."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or "total_size" not in metadata:
        remarks.append(f"{path}: has no metadata.total_size, so the size of the tensors was not compared with it")
        return None
    total = metadata["total_size"]
    if isinstance(total, float) and total.is_integer():
        remarks.append(f"{path}: metadata.total_size is written as a float ({total!r})")
        return int(total)
    if type(total) is not int:
        problems.append(f"{path}: metadata.total_size is {total!r}, not a number of bytes")
        return None
    return total


def _compare(root: PurePath, weight_map: dict[str, str], tensors: dict[str, TensorMeta], files: set[str]) -> list[str]:
    problems = [
        f"{root / file}: named by the index, but not in the folder" for file in sorted(set(weight_map.values()) - files)
    ]
    problems += [f"{root / file}: not named by the index" for file in sorted(files - set(weight_map.values()))]
    names = {path: path.name for path in {meta.file for meta in tensors.values()}}
    for name, file in weight_map.items():
        if name not in tensors:
            problems.append(f"tensor {name!r}: the index says {file}, but no file holds it")
        elif names[tensors[name].file] != file:
            problems.append(f"tensor {name!r}: the index says {file}, but it is in {names[tensors[name].file]}")
    problems += [
        f"tensor {name!r}: in {meta.file.name}, but not in the index"
        for name, meta in tensors.items()
        if name not in weight_map
    ]
    return problems

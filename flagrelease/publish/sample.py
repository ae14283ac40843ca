"""Reads some tensors of a published release and compares them with the manifest: does the hub serve what it lists?

The manifest has a BLAKE3 digest of each whole tensor. If one file holds a tensor whole, its bytes there are enough to
check the digest; in an mp layout this is true for experts, norms and whatever every rank repeats. Tensors that are cut
over ranks are left out, because their digests need bytes from several files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from flagrelease.errors import CheckpointError, UsageError
from flagrelease.records.manifest import FileRecord, Manifest
from flagrelease.shard.header import MAX_HEADER_BYTES, TensorMeta, parse_header

Read = Callable[[str, int, int], bytes]  # path, first byte, count -> bytes
_LENGTH_BYTES = 8
_FILES = 8  # at most this many files are sampled: with more, headers would be most of what is read
_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """How many tensors and bytes were read (headers not counted), and what is wrong with them, as sentences."""

    tensors: int
    bytes: int
    problems: tuple[str, ...]


def prove_sample(manifest: Manifest, read: Read, budget: int, seed: str) -> Sample:
    """Read up to `budget` bytes of tensors, chosen by `seed`, and compare their digests with the manifest.

    Raises:
        UsageError: every tensor in the chosen files is larger than `budget`.
    """
    files = sorted(
        (file for file in manifest.files if file.path.endswith(".safetensors")), key=lambda file: _rank(seed, file.path)
    )[:_FILES]
    seen, left, problems = 0, budget, []
    for place, file in enumerate(files):
        share = left // (len(files) - place)
        try:
            chosen = list(_choose(manifest, _header(file, read), share, seed))
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for meta in chosen:
            seen, left = seen + 1, left - meta.nbytes
            if _digest(meta, read) != manifest.tensors[meta.name].blake3:
                problems.append(f"{file.path}: tensor {meta.name!r}: the bytes served are not those of the manifest")
    if not seen and not problems:
        raise UsageError(f"{budget:,} bytes are too few for any tensor in the chosen files; allow more")
    return Sample(seen, budget - left, tuple(problems))


def _choose(manifest: Manifest, tensors: dict[str, TensorMeta], budget: int, seed: str) -> Iterator[TensorMeta]:
    for name in sorted(tensors, key=lambda name: _rank(seed, name)):
        meta, record = tensors[name], manifest.tensors.get(name)
        if record is None:
            raise CheckpointError(f"{meta.file}: tensor {name!r}: not in the manifest")
        if (meta.dtype, meta.shape) == (record.dtype, record.shape) and meta.nbytes <= budget:
            budget -= meta.nbytes
            yield meta


def _header(file: FileRecord, read: Read) -> dict[str, TensorMeta]:
    if file.size < _LENGTH_BYTES:
        raise CheckpointError(f"{file.path}: {file.size} bytes; a safetensors file starts with an 8-byte header length")
    length = int.from_bytes(read(file.path, 0, _LENGTH_BYTES), "little")
    if length >= MAX_HEADER_BYTES or _LENGTH_BYTES + length > file.size:
        raise CheckpointError(f"{file.path}: header of {length} bytes in a file of {file.size} bytes")
    return parse_header(read(file.path, _LENGTH_BYTES, length), Path(file.path), file.size).tensors


def _digest(meta: TensorMeta, read: Read) -> str:
    digest = blake3()
    for begin in range(meta.begin, meta.end, _CHUNK):
        digest.update(read(meta.file.as_posix(), begin, min(_CHUNK, meta.end - begin)))
    return digest.hexdigest()


def _rank(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()

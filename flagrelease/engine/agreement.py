"""Ranks that were started with other options, or read other files, find out before the first step.

Every rank of a job runs the same command, on several nodes from several disks. If one of them has another release,
another `config.json`, other options or other versions, the sums over ranks mean nothing, and no rank could tell from
what it holds itself. So each rank states what it has, all ranks get all statements, and all refuse together.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from flagrelease.engine.control import gather_bytes
from flagrelease.errors import CheckpointError, FlagReleaseError, UsageError
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.shard.header import TensorMeta, read_header
from flagrelease.shard.reader import TensorReader

_SAMPLE = 1 << 16  # bytes read at the beginning and at the end of a file's data
_SECTIONS = 4  # of every tensor that is not read whole; the middle page of each is read
_PAGE = 1 << 12
_ABSENT = "absent"


class _Digest(Protocol):
    def update(self, data: Any, /) -> None:
        """Take these bytes in."""


def require_same_options(control: dist.ProcessGroup | None, options: Mapping[str, object]) -> None:
    """Refuse, on every rank, unless all ranks have the same `options`: name -> value, compared as text.

    Raises:
        UsageError: names the rank, its host, the option and both values.
    """
    if control is not None:
        _require_same(control, lambda: {name: str(value) for name, value in options.items()}, UsageError)


def require_same_release(control: dist.ProcessGroup | None, folder: Path) -> None:
    """Refuse, on every rank, unless what all ranks find in their `folder` is the same release, wherever it lies.

    Raises:
        CheckpointError: names the rank, its host and the file; or this or another rank cannot read its release.
    """
    if control is not None:
        _require_same(control, lambda: release_identity(folder), CheckpointError)


def release_identity(folder: Path) -> dict[str, str]:
    """File name -> a digest of `config.json`, the manifest (if there is one) and every safetensors file.

    The digest of a safetensors file covers its header, all one-dimensional plain tensors (norms, biases, sinks), 64 KiB
    at both ends of the data, and four 4 KiB pages of every other tensor, one in the middle of each quarter. Tensors up
    to 16 KiB are covered whole. So it sees another step of training, a finetune of any one tensor, and any damage of a
    tensor that spans more than a quarter of it. It does not see a damaged sector or a flipped bit between the pages:
    `flagrelease verify` on each node reads every byte.

    Raises:
        CheckpointError: a file cannot be read, or is damaged as far as its header tells.
    """
    identity = {name: _file_digest(folder / name) for name in ("config.json", MANIFEST_NAME)}
    with TensorReader() as reader:
        for path in sorted(folder.glob("*.safetensors")):
            identity[path.name] = _weights_digest(path, reader)
    return identity


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _weights_digest(path: Path, reader: TensorReader) -> str:
    header = read_header(path)
    digest = hashlib.sha256(header.raw)
    metas = list(header.tensors.values())
    for meta in metas:
        if (len(meta.shape) == 1 and meta.dtype in ("BF16", "F16", "F32")) or meta.nbytes <= _SECTIONS * _PAGE:
            _add(digest, reader, meta, 0, meta.nbytes)
        else:
            for section in range(_SECTIONS):
                middle = meta.nbytes * (2 * section + 1) // (2 * _SECTIONS)
                _add(digest, reader, meta, middle - _PAGE // 2, _PAGE)
    if metas:
        first, last = min(metas, key=lambda meta: meta.begin), max(metas, key=lambda meta: meta.end)
        _add(digest, reader, first, 0, min(_SAMPLE, first.nbytes))
        size = min(_SAMPLE, last.nbytes)
        _add(digest, reader, last, last.nbytes - size, size)
    return digest.hexdigest()


def _add(digest: _Digest, reader: TensorReader, meta: TensorMeta, offset: int, size: int) -> None:
    data = np.empty(size, np.uint8)
    reader.read(meta, offset, data)
    digest.update(data)


def _require_same(
    control: dist.ProcessGroup, state: Callable[[], dict[str, str]], error: type[FlagReleaseError]
) -> None:
    """Compare what `state` gives on every rank. A rank whose `state` fails tells the others, so that none waits."""
    own: FlagReleaseError | None = None
    try:
        said: dict[str, Any] = {"statement": state()}
    except FlagReleaseError as refusal:
        own, said = refusal, {"statement": {}, "refusal": str(refusal)}
    message = json.dumps(said | {"host": socket.gethostname()}).encode()
    all_said = [json.loads(each) for each in gather_bytes(control, message)]
    if own is not None:
        raise own
    for rank, said in enumerate(all_said):
        if "refusal" in said:
            raise error(f"rank {rank} on {said['host']}: {said['refusal']}")
    for rank, said in enumerate(all_said[1:], 1):
        problem = first_difference(all_said[0]["statement"], said["statement"])
        if problem is not None:
            raise error(
                f"the ranks do not run the same thing: on rank {rank} ({said['host']}) {problem} as on rank 0 "
                f"({all_said[0]['host']})"
            )


def first_difference(first: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """What differs between two statements, `other`'s value first; None if they are equal."""
    for name in sorted(first.keys() | other.keys()):
        a, b = first.get(name, _ABSENT), other.get(name, _ABSENT)
        if a != b:
            return f"{name} is {b[:60]!r}, not {a[:60]!r}"
    return None

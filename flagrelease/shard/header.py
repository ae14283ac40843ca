"""The header of a safetensors file: parsed strictly, written deterministically.

A file is an 8-byte little-endian length, that many bytes of JSON, then the data of all tensors without holes
(https://huggingface.co/docs/safetensors). The JSON maps a name to `dtype`, `shape` and `data_offsets` (begin, end),
which count from the end of the header. Nothing in a file is trusted: every rule below is checked before an offset is
used, and each refusal names the file and the tensor.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from flagrelease.errors import CheckpointError
from flagrelease.shard.impostors import PEEK_BYTES, impostor
from flagrelease.strict_json import parse_json

# Bits an element takes. F4 holds two elements a byte; its shape is the logical one.
DTYPE_BITS = {
    "F4": 4, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip

# The safetensors library refuses longer headers; V4-Pro in one file would need 18 MB.
MAX_HEADER_BYTES = 100_000_000
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_quoted = json.encoder.encode_basestring  # what json.dumps calls in the end, without an encoder a call
_TOO_LARGE = 2**63
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class TensorMeta(NamedTuple):
    """One tensor in a file. `begin` and `end` are byte offsets from the start of the file.

    A tuple, as V4-Pro has 145,000 of them and a frozen dataclass takes four times as long to make.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: PurePath
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Logical elements (two a byte for F4; packed FP4 that is stored as I8 counts bytes)."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: tensors in file order, and the header's own bytes for identity digests."""

    file: PurePath
    tensors: dict[str, TensorMeta] = field(repr=False)
    metadata: dict[str, str]
    raw: bytes = field(repr=False)
    file_size: int


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of this dtype and logical shape."""
    return math.prod(shape) * DTYPE_BITS[dtype] // 8


def read_header(path: Path) -> Header:
    """Parse and check the header of `path`.

    Raises:
        CheckpointError: the file is not readable, truncated, or breaks a rule of the format.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(PEEK_BYTES)
            length = header_length(head, path, size)
            file.seek(_LENGTH.size)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) < length:
        raise CheckpointError(f"{path}: the file shrank while its header was read")
    return parse_header(raw, path, size)


def header_length(head: bytes, path: PurePath, file_size: int) -> int:
    """Bytes of the JSON behind the length, of a file that begins with `head`: up to `PEEK_BYTES`, and it has no more.

    Raises:
        CheckpointError: the file is something else, is truncated, or its header is too long.
    """
    prefix = head[: _LENGTH.size]
    # A pointer or a page begins with text, which read as a length is more than any header has.
    if _LENGTH.unpack(prefix.ljust(_LENGTH.size))[0] >= MAX_HEADER_BYTES and (instead := impostor(head, path)):
        raise CheckpointError(f"{path}: {instead}")
    if len(prefix) < _LENGTH.size:
        raise CheckpointError(f"{path}: {file_size} bytes; a safetensors file starts with an 8-byte header length")
    (length,) = _LENGTH.unpack(prefix)
    if length >= MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
    if _LENGTH.size + length > file_size:
        raise CheckpointError(f"{path}: header of {length} bytes in a file of {file_size} bytes: truncated")
    return int(length)


def parse_header(raw: bytes, path: PurePath, file_size: int) -> Header:
    """Check header bytes of a file of `file_size` bytes. Every byte string gives a Header or a CheckpointError."""
    document = _parse_json(raw, path)
    metadata = _check_metadata(document.pop(_METADATA, {}), path)
    start = _LENGTH.size + len(raw)
    metas: list[TensorMeta] = []
    name = ""
    try:
        for name, entry in document.items():
            metas.append(_check_entry(name, entry, path, start))
    except _BrokenRuleError as error:
        raise CheckpointError(f"{path}: tensor {name!r}: {error}") from None
    metas.sort(key=lambda meta: (meta.begin, meta.end))
    position = start
    for meta in metas:
        if meta.begin != position:
            what = "overlaps the tensor before it" if meta.begin < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {meta.name!r}: begins at {meta.begin - start} and {what}")
        position = meta.end
    if position != file_size:
        problem = "is truncated" if position > file_size else "has bytes that no tensor owns"
        raise CheckpointError(f"{path}: tensors end at byte {position}, the file at {file_size}: it {problem}")
    return Header(path, {meta.name: meta for meta in metas}, metadata, raw, file_size)


def _parse_json(raw: bytes, path: PurePath) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: the header does not start with '{{': not a safetensors file")
    try:
        document: dict[str, Any] = parse_json(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error})") from error
    return document


def _check_metadata(value: Any, path: PurePath) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{path}: {_METADATA} must map strings to strings")
    try:
        "".join([*value, *value.values()]).encode()
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair, UTF-8 cannot hold it
        raise CheckpointError(f"{path}: {_METADATA} holds text that is not Unicode") from None
    return value


class _BrokenRuleError(Exception):
    """What is wrong with an entry. The caller adds where, which is worth a string only then."""


def _check_entry(name: str, entry: Any, path: PurePath, start: int) -> TensorMeta:
    if not name.isprintable() or not name:
        raise _BrokenRuleError("a name must be printable text")
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise _BrokenRuleError("an entry has exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _BrokenRuleError(f"unknown dtype {dtype!r}")
    if not _are_sizes(shape):
        raise _BrokenRuleError(f"shape {shape!r} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _BrokenRuleError(f"data_offsets {offsets!r} are not two offsets")
    bits = _elements(shape) * DTYPE_BITS[dtype]
    begin, end = offsets
    if end - begin != bits // 8 or bits % 8:
        raise _BrokenRuleError(f"{dtype} {shape} takes {bits / 8:g} bytes, its offsets span {end - begin}")
    return TensorMeta(name, dtype, tuple(shape), path, start + begin, start + end)


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for n in value:  # noqa: SIM110 - all() takes twice as long, and V4-Pro has 290,000 of these lists
        # bool is an int in Python, and 2**63 is more than the largest offset that a file can have
        if type(n) is not int or not 0 <= n < _TOO_LARGE:
            return False
    return True


def _elements(shape: list[int]) -> int:
    elements = 1
    for size in shape:
        elements *= size
        if elements >= _TOO_LARGE:  # stop here: the product of a megabyte of sizes takes hours, and a later 0 hides it
            raise _BrokenRuleError(f"a shape of {len(shape)} sizes has more elements than a file can hold")
    return elements


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds `tensors` (name, dtype, logical shape) in this order: length and JSON.

    The same tensors always give the same bytes. `{"format": "pt"}` is there because older transformers refuse files
    without it. Data start at a multiple of 8, as the safetensors library writes them.
    """
    return join_header((header_entry(name, dtype, shape), tensor_bytes(dtype, shape)) for name, dtype, shape in tensors)


def header_entry(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    """What a header says of one tensor, up to its two offsets, for `join_header`."""
    sizes = ",".join(map(str, shape))
    return f'{_quoted(name)}:{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":['


def join_header(entries: Iterable[tuple[str, int]]) -> bytes:
    """`build_header` for entries that are written already, each with the bytes of its tensor.

    A plan writes the same entry into the headers of many ranks, and V4-Pro at mp64 has 200,000 of them.
    """
    texts = [f'{{"{_METADATA}":{{"format":"pt"}}']
    begin = 0
    for text, nbytes in entries:
        end = begin + nbytes
        texts.append(f"{text}{begin},{end}]}}")
        begin = end
    header = ",".join(texts).encode("utf-8") + b"}"
    header += b" " * (-len(header) % 8)
    return _LENGTH.pack(len(header)) + header

"""`AppendLog`: records of finished work, so that a command that was killed does none of it twice.

The file holds one JSON document a line. The first line says which kind of log it is, in which version, and what it is
bound to; every other line is a record. Each line ends with a CRC-32, so that a torn, overwritten or damaged line is
recognised; it is cut together with everything behind it, and that work is done again.

Why not sqlite3: a damaged page makes a whole database unreadable where a line costs itself and what follows; its locks
and its write-ahead log need more of a network file system than flock and append do; and people can read lines.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from flagrelease.durable.lines import LineFile
from flagrelease.errors import ResourceError

Record = TypeVar("Record", bound=BaseModel)
_CRC = b',"crc32":"%08x"}'
_CRC_BYTES = len(_CRC % 0)


class AppendLog(Generic[Record]):
    """A log that is open and locked; use it as a context, or call `close`.

    Attributes:
        path: the file.
        records: what was recorded before this opening, in its order.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        version: int,
        records: TypeAdapter[Record],
        binding: Mapping[str, str],
    ) -> None:
        """Begin the log at `path`, or take over what is there.

        Args:
            path: the file; folders above it are made.
            kind: what the log is of, in words: "answers to a benchmark".
            version: of the records' form. A log of another version is refused, never guessed at.
            records: reads a record from JSON, strictly.
            binding: what the work depends on, by names that a user understands. A log that was begun under another
                binding is refused, by the names that differ.

        Raises:
            ResourceError: the file is no such log or one of another version or binding, is in use by another process,
                or cannot be written.
        """
        self.path = path
        start = b'{"flagrelease":%s,"version":' % json.dumps(kind).encode()
        self._file = LineFile(path, start)
        try:
            head = {"flagrelease": kind, "version": version, "binding": dict(binding)}
            self.records: list[Record] = self._take_over(records, head) if self._file.lines else self._begin(head)
        except BaseException:
            self.close()
            raise

    def _begin(self, head: dict[str, object]) -> list[Record]:
        self._file.keep(0)
        self._file.append(_sealed(json.dumps(head, separators=(",", ":")).encode()), sync=True)
        return []

    def _take_over(self, adapter: TypeAdapter[Record], head: dict[str, object]) -> list[Record]:
        first, *lines = self._file.lines
        self._check_head(first, head)
        found: list[Record] = []
        for line in lines:
            if (document := _opened(line)) is None:
                break
            try:
                found.append(adapter.validate_json(document))
            except ValidationError:
                break
        self._file.keep(1 + len(found))
        return found

    def _check_head(self, line: bytes, head: dict[str, object]) -> None:
        document = _opened(line)
        begun = None if document is None else json.loads(document)
        if begun is None or begun.get("flagrelease") != head["flagrelease"]:
            raise ResourceError(
                f"{self.path}: is not a log of {head['flagrelease']} that this version of flagrelease reads; "
                "remove it to begin again"
            )
        if begun["version"] != head["version"]:
            raise ResourceError(
                f"{self.path}: was begun by another version of flagrelease (format {begun['version']}, this one "
                f"writes {head['version']}); finish it with that one, or remove it to begin again"
            )
        was, now = begun["binding"], head["binding"]
        assert isinstance(now, dict)
        if differs := differing(was, now):
            raise ResourceError(f"{self.path}: was begun with {differs}; remove it to begin again")

    def append(self, record: Record, *, sync: bool) -> None:
        """Add a record. Threads may call this at once.

        When this returns, a kill of the process cannot lose the record; with `sync`, neither can a power failure, and
        the same is then true of all records before it.

        Raises:
            ResourceError: no space, or another refusal of the system.
        """
        self._file.append(_sealed(record.model_dump_json(exclude_defaults=True).encode()), sync=sync)

    def close(self) -> None:
        """Close the file and give the lock back. Calling it again does nothing."""
        self._file.close()

    def __enter__(self) -> AppendLog[Record]:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()


def differing(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What two bindings disagree in, as "another chip and another set of rules"; empty if they agree."""
    names = [*now, *(name for name in was if name not in now)]
    return " and ".join(f"another {name}" for name in names if was.get(name) != now.get(name))


def _sealed(document: bytes) -> bytes:
    """A JSON object (not empty) with its CRC-32 as the last member."""
    return document[:-1] + _CRC % zlib.crc32(document)


def _opened(line: bytes) -> bytes | None:
    """The document of a sealed line; None if the line is not what was written."""
    document = line[:-_CRC_BYTES] + b"}"
    return document if line == _sealed(document) else None

"""Data files of benchmarks, read strictly: CSV or JSONL, every field as text.

Messages name the file, the line and the column, never what the field holds: the questions must not reach a log.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flagrelease.errors import UsageError
from flagrelease.strict_json import parse_json

Record = dict[str, str]

# "\frac" with one backslash in a JSON string decodes to a form feed and "rac"; a file of such questions asks others.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def read_records(path: Path, columns: Sequence[str]) -> list[Record]:
    """The records of a file, each with exactly `columns`; other columns are left out. Surrounding white space goes.

    Raises:
        UsageError: the file is missing, empty or of another form, or a record lacks one of `columns`.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: benchmark data is a .csv or a .jsonl file")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: not found") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start})") from None
    records = [_pick(raw, columns, f"{path}:{line}") for line, raw in readers[path.suffix.lower()](content, path)]
    if not records:
        raise UsageError(f"{path}: holds no records")
    return records


def _read_jsonl(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line.encode())
        except ValueError:
            raise UsageError(f"{path}:{number}: not JSON") from None  # the parser's message may quote the line
        if not isinstance(value, dict):
            raise UsageError(f"{path}:{number}: not a JSON object")
        yield number, value


def _read_csv(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) != len(header):
            raise UsageError(f"{path}: two columns have one name")
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise UsageError(f"{path}:{rows.line_num}: {len(row)} fields, the header has {len(header)}")
            yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error:
        raise UsageError(f"{path}:{rows.line_num}: not CSV") from None


def _pick(raw: dict[str, Any], columns: Sequence[str], place: str) -> Record:
    missing = [column for column in columns if column not in raw]
    if missing:
        # the names that are there stay unsaid: of a table without a header they are the first question
        lacks = ", ".join(repr(column) for column in missing)
        raise UsageError(f"{place}: lacks {lacks}; it has {len(raw)} fields")
    return {column: _text(raw[column], f"{place}: {column!r}") for column in columns}


def _text(value: Any, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):  # 1.50 has lost its zero when it arrives here as a float
        raise UsageError(f"{place} is neither text nor an integer; write it as text")
    if _CONTROL.search(value):
        raise UsageError(f"{place} holds a control character; was a backslash not doubled?")
    if not (stripped := value.strip()):
        raise UsageError(f"{place} is empty")
    return stripped

"""Data files of benchmarks, read strictly: CSV, JSONL or Parquet, every field as text.

Messages name the file, the line and the column, never what the field holds: the questions must not reach a log.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.errors import ResourceError, UsageError
from flagrelease.extras import remedy
from flagrelease.strict_json import parse_json

Record = dict[str, str]

# "\frac" with one backslash in a JSON string decodes to a form feed and "rac"; a file of such questions asks others.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Columns:
    """What a record of one form has: fields of text, whose surrounding white space goes, and fields kept as JSON."""

    texts: tuple[str, ...]
    kept: tuple[str, ...] = ()


def read_records(path: Path, forms: Sequence[Columns]) -> tuple[Columns, list[Record]]:
    """The form of a file, and its records, each with exactly that form's columns; other columns are left out.

    Args:
        path: the file.
        forms: those that it may have: the first of them all of whose columns the first record has.

    Raises:
        UsageError: the file is missing, empty or of another form, or a record lacks a column.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: benchmark data is a .csv, .jsonl or .parquet file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: not found") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    rows = list(readers[path.suffix.lower()](content, path))
    if not rows:
        raise UsageError(f"{path}: holds no records")
    fitting = [form for form in forms if rows[0][1].keys() >= {*form.texts, *form.kept}]
    form = fitting[0] if fitting else forms[0]
    return form, [_pick(raw, form, f"{path}:{line}") for line, raw in rows]


def _text_of(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start})") from None


def _read_parquet(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ResourceError(f"{path}: a .parquet file needs {error.name}: {remedy('eval')}") from error
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowException:
        raise UsageError(f"{path}: not Parquet") from None
    yield from enumerate(table.to_pylist(), 1)


def _read_jsonl(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text_of(content, path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line.encode())
        except ValueError:
            raise UsageError(f"{path}:{number}: not JSON") from None  # the parser's message may quote the line
        if not isinstance(value, dict):
            raise UsageError(f"{path}:{number}: not a JSON object")
        yield number, value


def _read_csv(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(_text_of(content, path), newline=""), strict=True)
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


def _pick(raw: dict[str, Any], form: Columns, place: str) -> Record:
    missing = [column for column in (*form.texts, *form.kept) if column not in raw]
    if missing:
        # the names that are there stay unsaid: of a table without a header they are the first question
        lacks = ", ".join(repr(column) for column in missing)
        raise UsageError(f"{place}: lacks {lacks}; it has {len(raw)} fields")
    texts = {column: _text(raw[column], f"{place}: {column!r}") for column in form.texts}
    return texts | {column: json.dumps(raw[column], ensure_ascii=False) for column in form.kept}


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

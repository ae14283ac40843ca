"""`Operand`: one of the two releases to compare: its manifest, and its small JSON files where they are at hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from flagrelease.errors import UsageError
from flagrelease.records.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest, read_manifest_bytes
from flagrelease.strict_json import parse_json

LARGEST_DOCUMENT = 1 << 20  # bytes: a config is small, and a tokenizer's vocabulary is no list of settings


@dataclass(frozen=True, slots=True)
class Operand:
    """A manifest and where its files may be; `folder` is None if only the manifest is at hand."""

    name: str
    manifest: Manifest
    manifest_sha256: str
    folder: Path | None

    def document(self, file: FileRecord) -> tuple[JsonValue, str | None]:
        """A JSON file of the release as (document, None), or (None, why it cannot be compared by keys).

        The file is believed only if it is still what the manifest says.
        """
        if file.size > LARGEST_DOCUMENT:
            return None, f"{file.size:,} bytes: keys are compared up to {LARGEST_DOCUMENT:,}"
        if self.folder is None:
            return None, f"only the manifest of {self.name} is at hand"
        try:
            content = (self.folder / file.path).read_bytes()
        except OSError as error:
            return None, f"not at hand in {self.name} ({error.strerror})"
        if hashlib.sha256(content).hexdigest() != file.sha256:
            return None, f"the file in {self.name} is not what its manifest says"
        try:
            document: JsonValue = parse_json(content)
        except ValueError as error:
            return None, f"is not valid JSON in {self.name} ({error})"
        return document, None


def read_operand(path: Path, name: str | None = None) -> Operand:
    """Read a release folder, or a manifest alone; `name` is what it is called, its path by default.

    Raises:
        UsageError: there is no such file or folder.
        VerificationError: no manifest, or not one that can be read.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such release folder or manifest")
    if path.is_dir():
        folder: Path | None = path
        content, where = read_manifest_bytes(path), path / MANIFEST_NAME
    else:
        folder = path.parent if path.name == MANIFEST_NAME else None
        content, where = path.read_bytes(), path
    manifest = parse_manifest(content, str(where))
    return Operand(name or str(path), manifest, hashlib.sha256(content).hexdigest(), folder)

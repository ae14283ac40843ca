"""Publications in folders: which release they are of, for which chip, and their cards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flagrelease.errors import FlagReleaseError
from flagrelease.publish.hubs.names import CARD_NAME, SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.records.manifest import MANIFEST_NAME, parse_manifest, read_manifest_bytes
from flagrelease.records.provenance import read_statement
from flagrelease.site.folder import Found


@dataclass(frozen=True, slots=True)
class FolderPublication:
    """One published folder.

    Attributes:
        name: its path below the folder that the site is made of.
        manifest_sha256, chip: what it is of; the chip is empty if its statement cannot be read.
        card: its README.md; empty if that is a link that leads out of the folder.
        trouble: why chip or card are empty.
    """

    name: str
    manifest_sha256: str
    chip: str
    files: int
    signed: bool
    card: str
    trouble: str | None


def read_publication(found: Found, folder: Path) -> FolderPublication:
    """Read the records of a published folder; its weights are not read.

    Raises:
        VerificationError: its manifest cannot be read.
    """
    name, content = folder.relative_to(found.root).as_posix(), read_manifest_bytes(folder)
    sha256, card = hashlib.sha256(content).hexdigest(), folder / CARD_NAME
    text, trouble = "", None
    if card.is_file() and found.leads_out(card):
        trouble = f"{CARD_NAME} is a link that leads out of the folder, so it is not copied"
    elif card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
    signed = (folder / SIGNATURE_NAME).is_file()
    try:
        manifest = parse_manifest(content, MANIFEST_NAME)
        statement = read_statement((folder / STATEMENT_NAME).read_bytes(), manifest, sha256)
    except FlagReleaseError as error:
        both = str(error) if trouble is None else f"{error}; {trouble}"
        return FolderPublication(name, sha256, "", 0, signed, text, both)
    return FolderPublication(name, sha256, statement.chip, len(statement.digests), signed, text, trouble)

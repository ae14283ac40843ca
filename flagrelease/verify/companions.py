"""The check `companions`: every other file of the source (tokenizer, licence, encoding/, ...) is in the release.

It compares the source's bytes with the SHA-256 in the manifest; the check `files` compares the release with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from flagrelease.publish.hubs.names import CARD_NAME, is_written_by_publishing
from flagrelease.records.manifest import MANIFEST_NAME, Manifest
from flagrelease.shard.index import INDEX_NAME
from flagrelease.verify.configs import CONFIG, NATIVE_CONFIG
from flagrelease.verify.origin import Origin
from flagrelease.verify.result import Check, CheckLog, Finding

_REWRITTEN = {CONFIG, NATIVE_CONFIG, INDEX_NAME, MANIFEST_NAME}


def check_companions(manifest: Manifest, source: Origin) -> Check:
    """Compare every companion of the source with the manifest's record of it."""
    log = CheckLog("companions")
    recorded = {record.path: record.sha256 for record in manifest.files}
    for name in sorted(_companions(source.files.names())):
        raw = source.files.read(name)
        log.saw(1, len(raw))
        if name not in recorded:
            log.add(Finding(file=name, rule="in the source, but not in the release"))
        elif hashlib.sha256(raw).hexdigest() != recorded[name]:
            log.add(Finding(file=name, rule="is not the source's file"))
    return log.close(
        "files of the source beside weights, index and config; hidden ones and names that publishing writes stay out"
    )


def _companions(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        relative = PurePosixPath(name)
        hidden = any(part.startswith(".") and part != ".gitattributes" for part in relative.parts)
        compiled = "__pycache__" in relative.parts
        weights = len(relative.parts) == 1 and relative.suffix == ".safetensors"
        replaced = name != CARD_NAME and is_written_by_publishing(name)
        if not (hidden or compiled or weights or replaced) and name not in _REWRITTEN:
            yield name

"""What an earlier conversion left in a release folder: is it a release of the checkpoint that is asked for now?"""

from __future__ import annotations

import glob
from pathlib import Path

from flagrelease.errors import ResourceError
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest
from flagrelease.records.source_identity import identity_of_record
from flagrelease.source.digests import Claims
from flagrelease.source.source import Source

PARTS_FOLDER = "parts"  # of an output folder; parts of a conversion lie in it (convert/sharing)


def refuse_parts(out: Path, release: str) -> None:
    """Refuse to begin the release `release` under `out` anew where parts of it were made.

    Raises:
        ResourceError: names a part.
    """
    if (out / release / MANIFEST_NAME).is_file():
        return
    for path in sorted((out / PARTS_FOLDER).glob(f"*-of-*/{glob.escape(release)}")):
        raise ResourceError(
            f"{out}: parts of {release} were made here with --part ({path.parent.name}); merge them with --merge, or "
            f"give another --out"
        )


def refuse_other_source(folder: Path, source: Source, claims: Claims) -> None:
    """Refuse a finished release that was made of another checkpoint than `source`.

    The identities are compared, and where a file was checked then and somebody states its digest now, the digests too.

    An unfinished one is bound to the identity of its source (`journal.open_journal`).

    Raises:
        ResourceError: the release in `folder` was made of another checkpoint.
        VerificationError: its manifest breaks its schema, or is too old to say what it was made of.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return
    record = read_manifest(folder).source
    made_of = identity_of_record(record, path)
    if (difference := made_of.difference(source.identity)) is not None:
        raise ResourceError(
            f"{folder}: holds a finished release of another checkpoint than {source.root} ({difference}); give "
            f"another --out or remove the folder"
        )
    for checked in record.checked:
        for claim in claims.get(checked.path, ()):
            if claim.algorithm == checked.algorithm and claim.digest != checked.digest:
                raise ResourceError(
                    f"{folder}: holds a finished release of another checkpoint: {checked.path} had {checked.algorithm} "
                    f"{checked.digest}, {claim.by} now says {claim.digest}; give another --out or remove the folder"
                )

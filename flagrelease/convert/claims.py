"""Everything that is stated about the files of the checkpoint of a request, gathered before the work begins."""

from __future__ import annotations

from pathlib import Path

from flagrelease import console
from flagrelease.convert.planning.plan import Provenance
from flagrelease.convert.request import ConversionRequest
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.digests import Claims, join_claims, read_digest_file, stated_claims
from flagrelease.source.hub_listing import listed_claims


def gather_claims(request: ConversionRequest, digest_file: Path | None, *, ask: bool) -> Claims:
    """What a hub, the records of a download and `digest_file` state, and for a folder the listing of its hub.

    Args:
        request: with a recipe, its source revision is what the hub is asked for. A machine without a network continues
            without the listing, and says so on stderr.
        digest_file: `--source-digests`.
        ask: whether to ask the hub at all.

    Raises:
        UsageError: the digest file is not one.
        CheckpointError: two claims about one file contradict each other.
    """
    files, origin = request.source.files, request.provenance
    several = [stated_claims(files)]
    if digest_file is not None:
        several.append(read_digest_file(digest_file, files))
    if ask and origin.repo is not None and origin.revision is not None and not _is_of(files, origin):
        listed, remark = listed_claims(origin.repo, origin.revision)
        console.say(f"source: {remark}")
        several.append(listed)
    return join_claims(files, several)


def _is_of(files: CheckpointFiles, origin: Provenance) -> bool:
    """Whether the files are read from the very place that would be asked."""
    if files.folder is not None:
        return False
    from flagrelease.source.hub.files import HubFiles

    return isinstance(files, HubFiles) and (files.repo, files.revision) == (origin.repo, origin.revision)

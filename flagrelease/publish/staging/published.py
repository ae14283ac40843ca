"""`publish_from`: a release published from a folder, or from where `convert --disk` has put it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flagrelease.chips.table import get_chip
from flagrelease.publish.publish import PublishOutcome, publish
from flagrelease.publish.reading.remote import open_reader, parse_address
from flagrelease.publish.records import default_report
from flagrelease.publish.staging.fetched import fetched


def publish_from(
    release: str,
    chip: str,
    to: str,
    *,
    report: Path | None,
    allow_unvalidated: bool,
    endpoint: str | None = None,
    **options: Any,
) -> PublishOutcome:
    """`publish` of the folder `release`, or of `hf://OWNER/NAME@BRANCH`, whose files are not fetched for it.

    Args:
        release: a folder, or an address.
        report: None: where `validate` puts it beside a folder. Beside an address there is none, so it has to be given.
        chip, to, allow_unvalidated, endpoint, options: as for `publish`.

    Raises:
        FlagReleaseError: as `publish` and `fetched`.
    """
    address = parse_address(release)
    options |= {"allow_unvalidated": allow_unvalidated, "endpoint": endpoint}
    if address is None:
        found = report or _validated(Path(release), chip, allow_unvalidated)
        return publish(Path(release), chip, to, report=found, **options)
    with fetched(open_reader(address.hub, endpoint), address) as folder:
        return publish(folder, chip, to, report=report, staged=address, **options)


def _validated(release: Path, chip: str, allow_unvalidated: bool) -> Path | None:
    """The report where validate puts it; None if there need be none and there is none."""
    path = default_report(release, get_chip(chip).id)
    return path if path.is_file() or not allow_unvalidated else None

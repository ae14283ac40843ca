"""`publish` as a function: from a release and a target to a plan, and with `yes` to a publication that was checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flagrelease.chips.table import get_chip
from flagrelease.console import Tracker, progress
from flagrelease.errors import UsageError
from flagrelease.publish.folder import publish_folder
from flagrelease.publish.hubs.registry import hub_by_scheme, schemes
from flagrelease.publish.limits import limit_problems
from flagrelease.publish.plan import plan_publication
from flagrelease.publish.publication import Publication
from flagrelease.publish.reading.remote import Address
from flagrelease.publish.records import read_records
from flagrelease.publish.upload.client import open_hub
from flagrelease.records.recipe import read_recipe


class OverLimitError(UsageError):
    """The hub would refuse the publication, which is kept for showing."""

    def __init__(self, publication: Publication, problems: list[str]) -> None:
        """`problems`: what it would refuse, as sentences."""
        super().__init__("; ".join(problems))
        self.publication = publication


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """The plan, and whether it was carried out: `revision` is then the commit, the tag or the folder, else None."""

    publication: Publication
    revision: str | None


def publish(
    release: Path,
    chip: str,
    to: str,
    *,
    repo: str | None = None,
    named: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    report: Path | None = None,
    allow_unvalidated: bool = False,
    allow_unproved_weights: bool = False,
    recipe: Path | None = None,
    signing_key: Path | None = None,
    signature: Path | None = None,
    endpoint: str | None = None,
    replace: bool = False,
    staged: Address | None = None,
) -> PublishOutcome:
    """Plan the publication of a release for a chip, and carry it out if `yes` is given and `dry_run` is not.

    Args:
        release: folder with a manifest.
        to: `hf`, `modelscope`, or a folder.
        repo: `owner/name`; by default the one that chip table and recipe give.
        named: how the card in a folder calls the repository; by default likewise.
        report: the validation's report for this manifest and chip.
        allow_unvalidated: there need be no report.
        allow_unproved_weights: the report need not have compared the weights with their source.
        recipe: attached to a release that was converted without one; it must give the same bytes.
        signing_key: PEM file of an EC private key; the publication then holds a signature of every file.
        signature: a bundle over exactly these files that was made elsewhere, for example by sigstore without a key.
        endpoint: another hub than the client's own settings say.
        replace: a folder that holds an earlier publication of the same model for the same chip gets this one instead.
        staged: where `convert --disk` has put the files; `release` is then what `staging.fetched` made of it.

    Raises:
        FlagReleaseError: everything that keeps the target from holding exactly what was proved.
    """
    hub = hub_by_scheme(to)
    if hub is None and repo is not None:
        raise UsageError(f"--repo is for hubs ({', '.join(schemes())}); {to!r} is a folder")
    if signing_key is not None and signature is not None:
        raise UsageError("--signing-key and --signature: give one of them")
    attached = None if recipe is None else read_recipe(recipe)
    records = read_records(release, get_chip(chip), report, allow_unvalidated, allow_unproved_weights, attached)
    place = to if hub is None else repo or records.wanted.repo
    if staged is not None and (hub is not staged.hub or place != staged.repo):
        raise UsageError(
            f"{staged.hub.scheme}://{staged.repo}@{staged.revision}: its files are published in that repository alone, "
            f"where they need not be sent; --to {to} is {place}"
        )
    publication = plan_publication(
        records, hub, place, named=named, private=private, signing_key=signing_key, signature=signature,
        staged=None if staged is None else f"{staged.repo}@{staged.revision}",
    )  # fmt: skip
    if problems := limit_problems(publication):
        raise OverLimitError(publication, problems)
    if dry_run or not yes:
        return PublishOutcome(publication, None)
    with progress("publish", publication.bytes) as tracker:
        return PublishOutcome(publication, _carry_out(publication, endpoint, tracker, replace))


def _carry_out(publication: Publication, endpoint: str | None, tracker: Tracker, replace: bool) -> str:
    """Returns the commit, the tag or the folder."""
    if publication.hub is not None:
        return open_hub(publication.hub, endpoint).publish(publication, tracker)
    publish_folder(publication, Path(publication.repo), tracker, replace=replace)
    return publication.repo

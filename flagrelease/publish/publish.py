"""`publish` as a function: from a release and a target to a plan, and with `yes` to a publication that was checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flagrelease.chips.table import get_chip, repo_name
from flagrelease.console import Tracker, progress
from flagrelease.errors import ResourceError, UsageError
from flagrelease.publish.card import make_card
from flagrelease.publish.folder import list_folder, publish_folder
from flagrelease.publish.hub_client import HubClient
from flagrelease.publish.hubs.hub import HUBS, Hub
from flagrelease.publish.hubs.names import CARD_NAME, CONFIGURATION_NAME, SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.publish.huggingface import HuggingFace
from flagrelease.publish.huggingface_client import HuggingFaceClient
from flagrelease.publish.limits import limit_problems
from flagrelease.publish.listing import Difference, compare
from flagrelease.publish.modelscope import ModelScope
from flagrelease.publish.modelscope_client import ModelScopeClient
from flagrelease.publish.publication import Publication, make_publication
from flagrelease.publish.records import Records, read_records
from flagrelease.publish.run_files import run_files
from flagrelease.publish.signature import make_signature, read_unchecked, unsigned_files
from flagrelease.records.provenance import make_statement

_CONFIGURATION = b'{"framework": "pytorch", "task": "text-generation"}\n'


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
    private: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    report: Path | None = None,
    allow_unvalidated: bool = False,
    allow_unproved_weights: bool = False,
    signing_key: Path | None = None,
    signature: Path | None = None,
    endpoint: str | None = None,
) -> PublishOutcome:
    """Plan the publication of a release for a chip, and carry it out if `yes` is given and `dry_run` is not.

    Args:
        release: folder with a manifest.
        to: `hf`, `modelscope`, or a folder.
        repo: `owner/name`; by default the one that chip table and recipe give.
        report: the validation's report for this manifest and chip.
        allow_unvalidated: there need be no report.
        allow_unproved_weights: the report need not have compared the weights with their source.
        signing_key: PEM file of an EC private key; the publication then holds a signature of every file.
        signature: a bundle over exactly these files that was made elsewhere, for example by sigstore without a key.
        endpoint: another hub than the client's own settings say.

    Raises:
        FlagReleaseError: everything that keeps the target from holding exactly what was proved.
    """
    records = read_records(release, chip, report, allow_unvalidated, allow_unproved_weights)
    hub = HUBS.get(to)
    if hub is None and repo is not None:
        raise UsageError(f"--repo is for hubs ({', '.join(HUBS)}); {to!r} is a folder")
    if signing_key is not None and signature is not None:
        raise UsageError("--signing-key and --signature: give one of them")

    def sign(name: str, digests: dict[str, str]) -> bytes | None:
        if signature is not None:
            return _bundle_of(signature, digests)
        return None if signing_key is None else make_signature(name, digests, signing_key)

    publication = plan(records, hub, to, repo, private, sign)
    if problems := limit_problems(publication):
        raise OverLimitError(publication, problems)
    if dry_run or not yes:
        return PublishOutcome(publication, None)
    with progress("publish", publication.bytes) as tracker:
        return PublishOutcome(publication, _carry_out(publication, to, endpoint, tracker))


def plan(
    records: Records,
    hub: Hub | None,
    to: str,
    repo: str | None,
    private: bool,
    sign: Callable[[str, dict[str, str]], bytes | None],
) -> Publication:
    """The publication: files of the release, card, run files, report, statement, and what `sign` makes of them."""
    named = repo or repo_name(records.recipe.model, records.chip)
    # A folder holds what Hugging Face would: it is a mirror, or a look at it.
    documents = {CARD_NAME: make_card(records, hub or "huggingface", named), **run_files(records)}
    if hub == "modelscope":
        documents[CONFIGURATION_NAME] = _CONFIGURATION

    def with_documents() -> Publication:
        return make_publication(records, hub, to if hub is None else named, private, documents)

    # The statement is about every other file; the signature is of every file but itself.
    documents[STATEMENT_NAME] = make_statement(
        records.manifest, records.manifest_sha256, records.chip.id, with_documents().digests
    )
    if (bundle := sign(named.rpartition("/")[2], with_documents().digests)) is not None:
        documents[SIGNATURE_NAME] = bundle
    return with_documents()


def _bundle_of(path: Path, digests: dict[str, str]) -> bytes:
    """A bundle made elsewhere, if it is over these files.

    Raises:
        UsageError: it cannot be read, or is over other files.
        VerificationError: it is no bundle of a model.
    """
    try:
        bundle = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    if differing := unsigned_files(read_unchecked(bundle), digests):
        raise UsageError(f"{path}: is not over this publication: {'; '.join(differing[:5])}")
    return bundle


def siblings(publication: Publication) -> tuple[str, ...]:
    """Repositories of the recipe's other chips that get the same weights."""
    recipe, own = publication.records.recipe, publication.records.chip.id
    same = recipe.releases[own]
    if publication.repo != repo_name(recipe.model, publication.records.chip):
        return ()
    return tuple(
        repo_name(recipe.model, get_chip(chip))
        for chip, spec in recipe.releases.items()
        if chip != own and spec == same
    )


def check_published(publication: Publication, to: str, endpoint: str | None = None) -> Difference:
    """What the target holds under the publication's tag, compared with what it should hold, by listing.

    Nothing is downloaded from a hub; a folder is hashed.

    Raises:
        NetworkError: there is no such repository or tag, or the hub does not answer.
        ResourceError: there is no such folder.
    """
    if publication.hub is None:
        if not Path(to).is_dir():
            raise ResourceError(f"{to}: not a folder")
        with progress("check", publication.bytes) as tracker:
            return compare(publication.by_path, list_folder(Path(to), tracker))
    client = open_hub(publication.hub, endpoint)
    return compare(publication.by_path, client.list_files(publication.repo, publication.version))


def open_hub(hub: Hub, endpoint: str | None = None) -> HubClient:
    """The hub's client, for reading."""
    return ModelScopeClient(endpoint) if hub == "modelscope" else HuggingFaceClient(endpoint)


def _carry_out(publication: Publication, to: str, endpoint: str | None, tracker: Tracker) -> str:
    if publication.hub is None:
        publish_folder(publication, Path(to), tracker)
        return to
    if publication.hub == "modelscope":
        return ModelScope(endpoint).publish(publication, tracker)
    return HuggingFace(endpoint).publish(publication, siblings(publication), tracker)

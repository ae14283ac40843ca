"""The plan of a publication: the release's files and the documents that are made from its records."""

from __future__ import annotations

from pathlib import Path

from flagrelease.errors import UsageError
from flagrelease.publish.bom import make_bom
from flagrelease.publish.card import make_card, make_claims
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.names import BOM_NAME, CARD_NAME, CLAIMS_NAME, SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.publish.publication import Publication, make_publication
from flagrelease.publish.records import Records
from flagrelease.publish.run_files import run_files
from flagrelease.publish.signature import make_signature, read_unchecked, unsigned_files
from flagrelease.records.provenance import make_statement


def plan_publication(
    records: Records,
    hub: Hub | None,
    place: str,
    *,
    named: str | None = None,
    private: bool = False,
    signing_key: Path | None = None,
    signature: Path | None = None,
    staged: str | None = None,
) -> Publication:
    """Files of the release, card, run files, report, what the hub reads, statement, and a signature if asked for.

    Args:
        hub: None for a folder, which gets what Hugging Face would get: it is a mirror, or a look at it.
        place: the repository, or the folder.
        named: how the card of a folder calls the repository; None: as the manifest's recipe says.
        signing_key: PEM file of an EC private key.
        signature: a bundle over exactly these files that was made elsewhere.
        staged: `owner/name@branch` of the hub, where `convert --disk` has put the files.

    Raises:
        UsageError: a file of the release has a name that publishing writes; a key or bundle that does not fit.
        VerificationError: a card that breaks a rule of the hub.
    """
    own = records.wanted.repo
    named = place if hub is not None else named or own
    facts = hub or HUGGING_FACE
    name = named.rpartition("/")[2]
    documents = {
        CARD_NAME: make_card(records, facts, named),
        CLAIMS_NAME: make_claims(records, facts, named),
        BOM_NAME: make_bom(records, name),
        **run_files(records),
        **facts.documents,
    }
    siblings = (*(() if staged is None else (staged,)), *(_siblings(records) if named == own else ()))

    def with_documents() -> Publication:
        return make_publication(records, hub, place, private, documents, siblings)

    # The statement is about every other file; the signature is of every file but itself.
    documents[STATEMENT_NAME] = make_statement(
        records.manifest, records.manifest_sha256, records.chip.id, records.recipe_document, with_documents().digests
    )
    digests = with_documents().digests
    if signing_key is not None:
        documents[SIGNATURE_NAME] = make_signature(name, digests, signing_key)
    elif signature is not None:
        documents[SIGNATURE_NAME] = _bundle_of(signature, digests)
    return with_documents()


def _siblings(records: Records) -> tuple[str, ...]:
    """Repositories of the recipe's other releases that are the same weights."""
    own = records.wanted
    same = {"stack": own.spec.stack}  # for whom they are made changes no byte
    return tuple(
        one.repo
        for one in records.recipe.chosen()
        if one.repo != own.repo and one.spec.model_copy(update=same) == own.spec
    )


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

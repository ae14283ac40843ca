"""What publishing and checking ask of a hub, whichever it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import import_module
from typing import Protocol, cast

from flagrelease.console import Tracker
from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.names import STATEMENT_NAME
from flagrelease.publish.publication import Publication
from flagrelease.publish.reading.remote import HubReader, RemoteFile
from flagrelease.records.manifest import MANIFEST_NAME, parse_manifest
from flagrelease.records.provenance import read_statement


class HubClient(HubReader, Protocol):
    """One hub. Every method waits out what passes by itself."""

    def publish(self, publication: Publication, progress: Tracker) -> str:
        """Make the default branch hold exactly this publication, and tag it; returns the commit, or the tag.

        Raises:
            UsageError: the repository has another visibility or licence, or holds something else.
            VerificationError: a file is not what the manifest says, the hub does not hold what it was sent, or
                somebody else changed the default branch meanwhile.
            NetworkError: the hub did not do it; what did pass stays, and the same command resumes.
        """
        ...


def open_hub(hub: Hub, endpoint: str | None = None) -> HubClient:
    """The hub's client, which is imported now. `endpoint`: another address than the client's own settings say.

    Raises:
        ResourceError: the package that the hub publishes is not installed.
    """
    module, _, name = hub.client.partition(":")
    return cast("HubClient", getattr(import_module(module), name)(endpoint))


def refuse_another_models(
    client: HubClient, repo: str, revision: str, listed: Iterable[RemoteFile], model: str
) -> None:
    """What is replaced must be an earlier publication of the same model, by the records that lie there.

    Raises:
        UsageError: they are not records of flagrelease, or of another model.
    """
    sizes = {file.path: file.size for file in listed}
    if MANIFEST_NAME not in sizes:
        return
    try:
        there = _model_of(client, repo, revision, sizes)
    except VerificationError as error:
        raise UsageError(f"{error}; so it is nothing that flagrelease published; name another repository") from None
    if there != model:
        raise UsageError(f"{repo}: holds {there}, this is {model}; name another repository")


def _model_of(client: HubClient, repo: str, revision: str, sizes: dict[str, int]) -> str:
    """By the manifest, or by the statement where the recipe was attached to a release converted without one."""
    content = client.read(repo, revision, MANIFEST_NAME, 0, sizes[MANIFEST_NAME])
    manifest = parse_manifest(content, f"{repo}/{MANIFEST_NAME}")
    if manifest.model is not None:
        return manifest.model
    if STATEMENT_NAME not in sizes:
        raise VerificationError(f"{repo}: names no model and has no {STATEMENT_NAME}")
    statement = client.read(repo, revision, STATEMENT_NAME, 0, sizes[STATEMENT_NAME])
    return read_statement(statement, manifest, hashlib.sha256(content).hexdigest()).recipe.model

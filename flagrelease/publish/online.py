"""Checking a published release where it is: its records are read, everything else is compared by listing.

Read are the manifest, the provenance statement and the signature, and the small files that a hub lists without SHA-256
(Hugging Face keeps those in git). Nothing of this machine is needed: the records say what must be there, and the
signature, with the public key, says who said so.

What `convert --disk` has put beside the publications has a manifest alone, and is compared with that.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pydantic import BaseModel, ConfigDict, computed_field

from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.names import SIGNATURE_NAME, STAGING_REPOSITORY, STATEMENT_NAME, is_staged
from flagrelease.publish.hubs.registry import find_licence
from flagrelease.publish.listing import HUB_FILES, git_sha1
from flagrelease.publish.publication import version_of
from flagrelease.publish.reading.remote import Address, HubReader, RemoteFile, RepositoryFacts
from flagrelease.publish.sample import Sample, prove_sample
from flagrelease.publish.signature import check_signed
from flagrelease.publish.upload.client import HubClient
from flagrelease.records.manifest import MANIFEST_NAME, Manifest, TargetRecord, parse_manifest
from flagrelease.records.provenance import read_statement

RECORD_BYTES = 1 << 30  # a manifest of V4-Pro has 30 MB; what is much longer is none
_SMALL_BYTES = 64 << 20  # a hub that keeps a longer file without its SHA-256 is not believed


class OnlineReport(BaseModel):
    """What was found.

    Attributes:
        revision: that was read: a commit of Hugging Face, a tag of ModelScope.
        published: false for what `convert --disk` put there, which nobody has validated.
        version: the tag that these files have; null for what is not published.
        signature: `checked` (what is wrong with it is among the problems), `not-checked` (no key was given), or `none`.
        tensors, tensor_bytes: of the sample whose bytes were read; `seed` chose them.
        problems: sentences; none means that the publication is whole and unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hub: str
    repo: str
    revision: str
    published: bool
    version: str | None
    model: str | None
    target: TargetRecord
    manifest_sha256: str
    visibility: str
    licence: str | None
    files: int
    bytes: int
    signature: str
    tensors: int
    tensor_bytes: int
    seed: str
    problems: tuple[str, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Nothing was found."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class _Records:
    """What a release says of itself. `digests` lists every file, records included; `licence` is an SPDX id, None where
    a release that is not published names no recipe."""

    manifest: Manifest
    model: str | None
    licence: str | None
    manifest_sha256: str
    digests: dict[str, str]
    signature: bytes | None
    published: bool = True

    @property
    def version(self) -> str | None:
        """The tag that these files have."""
        return version_of(self.manifest.tool.version, self.digests) if self.published else None


def verify_online(
    client: HubClient, address: Address, *, private: bool = False, key: bytes | None = None, sample_bytes: int = 0
) -> OnlineReport:
    """Check the release at `address` against its own manifest, statement and signature.

    Args:
        private: whether the repository is meant to be private.
        key: PEM of the public key that must have signed it.
        sample_bytes: bytes of tensors to read and prove as well.

    Raises:
        VerificationError: there is nothing to check: no repository, tag, manifest or statement; or the records do not
            agree with each other.
        NetworkError: the hub does not answer.
    """
    revision = client.pin(address.repo, address.revision)
    facts = client.describe(address.repo, revision)
    listed = {file.path: file for file in client.list_files(address.repo, revision) if file.path not in HUB_FILES}
    staged = is_staged(address.repo, address.revision)
    records = (_read_staged if staged else _read_records)(client, address.repo, revision, listed)
    problems = list(_differences(client, address.repo, revision, records, listed))
    private = private or address.repo.endswith(STAGING_REPOSITORY)
    problems += _repository_problems(client.hub, facts, records.licence, private)
    problems += _tag_problems(address, records.version)
    if key is not None:
        problems += check_signed(records.signature, key, records.digests)
    unchecked = "none" if records.signature is None else "not-checked"
    seed, sample = secrets.token_hex(8), Sample(0, 0, ())
    if sample_bytes:
        read = partial(client.read, address.repo, revision)
        sample = prove_sample(records.manifest, read, sample_bytes, seed)
    return OnlineReport(
        hub=client.hub.name,
        repo=address.repo,
        revision=revision,
        published=records.published,
        version=records.version,
        model=records.model,
        target=records.manifest.target,
        manifest_sha256=records.manifest_sha256,
        visibility=facts.visibility,
        licence=facts.licence,
        files=len(listed),
        bytes=sum(file.size for file in listed.values()),
        signature=unchecked if key is None else "checked",
        tensors=sample.tensors,
        tensor_bytes=sample.bytes,
        seed=seed,
        problems=(*problems, *sample.problems),
    )


def _repository_problems(hub: Hub, facts: RepositoryFacts, licence: str | None, private: bool) -> Iterator[str]:
    if facts.visibility != (wanted := "private" if private else "public"):
        yield f"the repository is {facts.visibility}, not {wanted}"
    if licence is not None and (facts.licence or "").lower() not in {hub.licence(licence).lower(), licence.lower()}:
        yield f"the repository has licence {facts.licence!r}; the recipe says {licence}"


def _tag_problems(address: Address, version: str | None) -> Iterator[str]:
    """A tag that looks like a version names the files; other tags and commits name nothing."""
    tag = address.revision
    if tag is not None and tag != version and re.fullmatch(r"v.+-[0-9a-f]{12}", tag):
        yield f"these files have version {version}, not {tag}"


def _read_records(client: HubClient, repo: str, revision: str, listed: Mapping[str, RemoteFile]) -> _Records:
    contents = {
        name: read_listed(client, repo, revision, listed[name], RECORD_BYTES)
        for name in (MANIFEST_NAME, STATEMENT_NAME, SIGNATURE_NAME)
        if name in listed
    }
    for name in (MANIFEST_NAME, STATEMENT_NAME):
        if name not in contents:
            raise VerificationError(f"{repo}@{revision}: no {name}, so nothing that flagrelease published")
    manifest = parse_manifest(contents[MANIFEST_NAME], f"{repo}/{MANIFEST_NAME}")
    manifest_sha256 = hashlib.sha256(contents[MANIFEST_NAME]).hexdigest()
    statement = read_statement(contents[STATEMENT_NAME], manifest, manifest_sha256)
    licence, digests = find_licence(statement.recipe.source.license), dict(statement.digests)
    signature = contents.get(SIGNATURE_NAME)
    if signature is not None:
        digests[SIGNATURE_NAME] = hashlib.sha256(signature).hexdigest()
    return _Records(manifest, statement.recipe.model, licence, manifest_sha256, digests, signature)


def _read_staged(client: HubClient, repo: str, revision: str, listed: Mapping[str, RemoteFile]) -> _Records:
    """The manifest alone: there is neither card nor statement before the release is published."""
    if MANIFEST_NAME not in listed:
        raise VerificationError(
            f"{repo}@{revision}: no {MANIFEST_NAME} yet: the conversion that writes it has not finished; run its "
            "command again"
        )
    content = read_listed(client, repo, revision, listed[MANIFEST_NAME], RECORD_BYTES)
    manifest = parse_manifest(content, f"{repo}/{MANIFEST_NAME}")
    sha256 = hashlib.sha256(content).hexdigest()
    digests = {file.path: file.sha256 for file in manifest.files} | {MANIFEST_NAME: sha256}
    licence = manifest.source.license
    return _Records(
        manifest, manifest.model, None if licence is None else find_licence(licence), sha256, digests, None, False
    )


def read_listed(client: HubReader, repo: str, revision: str, file: RemoteFile, limit: int) -> bytes:
    """A file, compared with what the listing says of it.

    Raises:
        VerificationError: it is longer than any of its kind, or the hub serves something else than it lists.
    """
    if file.size > limit:
        raise VerificationError(f"{repo}/{file.path}: {file.size:,} bytes; at most {limit:,} are read")
    content = client.read(repo, revision, file.path, 0, file.size) if file.size else b""
    if file.sha256 not in (None, hashlib.sha256(content).hexdigest()) or file.git_sha1 not in (None, git_sha1(content)):
        raise VerificationError(f"{repo}/{file.path}: the hub serves something else than it lists")
    return content


def _differences(
    client: HubClient, repo: str, revision: str, records: _Records, listed: Mapping[str, RemoteFile]
) -> Iterator[str]:
    for path in sorted(records.digests.keys() - listed.keys()):
        yield f"{path}: lost"
    for path in sorted(listed.keys() - records.digests.keys()):
        yield f"{path}: not of this release"
    for path in sorted(listed.keys() & records.digests.keys()):
        file, digest = listed[path], records.digests[path]
        found = file.sha256
        if found is None:
            found = hashlib.sha256(read_listed(client, repo, revision, file, _SMALL_BYTES)).hexdigest()
        if found != digest:
            yield f"{path}: changed"

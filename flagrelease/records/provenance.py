"""`provenance.intoto.json`: an in-toto statement about every file of a publication, written by publish, read strictly.

A published folder holds more than its manifest says (card, report, run files); this is the list of all of it. Formats:
in-toto Statement v1 (https://in-toto.io/Statement/v1), SLSA provenance v1 (https://slsa.dev/provenance/v1). It holds no
time and no machine, and nothing that manifest, chip and digests do not give: so a reader makes it again and compares.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.names import CARD_NAME, SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.records.attachment import disagreements, parse_recipe
from flagrelease.records.manifest import MANIFEST_NAME, Manifest, inside_release
from flagrelease.records.recipe import Recipe
from flagrelease.strict_json import parse_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PROJECT = "https://github.com/flagos-ai/flagrelease"


def make_statement(
    manifest: Manifest, manifest_sha256: str, chip: str, recipe: dict[str, Any], digests: Mapping[str, str]
) -> bytes:
    """The statement about `digests` (path -> SHA-256), sorted by path; one newline at the end.

    `recipe` is the manifest's, or the one attached to a release that was converted without any.
    """
    source = recipe["source"]
    document: dict[str, Any] = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path, "digest": {"sha256": digests[path]}} for path in sorted(digests)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{PROJECT}/blob/v{manifest.tool.version}/docs/publishing.md#provenance",
                "externalParameters": {
                    "recipe": recipe,
                    "target": manifest.target.model_dump(mode="json"),
                    "chip": chip,
                },
                "internalParameters": {"options": manifest.options, "plan": manifest.plan},
                "resolvedDependencies": [
                    {
                        "uri": f"https://huggingface.co/{source['repo']}/tree/{source['revision']}",
                        "name": source["repo"],
                        "digest": {"sha256": manifest.source.identity},
                    }
                ],
            },
            "runDetails": {
                "builder": {"id": PROJECT, "version": {"flagrelease": manifest.tool.version}},
                "metadata": {"invocationId": manifest_sha256},
            },
        },
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Statement:
    """What a publication says of itself.

    Attributes:
        recipe: the manifest's, or the one attached to a release that was converted without any.
        digests: path -> SHA-256 of every file that the publication must hold, the statement included. The signature,
            which a publication may have, is not among them.
    """

    chip: str
    recipe: Recipe
    digests: dict[str, str]


def read_statement(content: bytes, manifest: Manifest, manifest_sha256: str) -> Statement:
    """Read the statement of a publication of this manifest, and check it against the manifest.

    Raises:
        VerificationError: the statement is not what manifest, recipe, chip and digests give, its recipe does not give
            this release, it says of a file of the release something else than the manifest, or adds a file that
            no publication adds.
    """
    chip, stated, digests = _parse(content)
    recipe = parse_recipe(stated if manifest.recipe is None else manifest.recipe, STATEMENT_NAME)
    document = recipe.document() if manifest.recipe is None else manifest.recipe
    if content != make_statement(manifest, manifest_sha256, chip, document, digests):
        raise VerificationError(f"{STATEMENT_NAME}: not what manifest, chip and digests give; changed since")
    if problems := list(disagreements(recipe, manifest, chip)):
        raise VerificationError(f"{STATEMENT_NAME}: {'; '.join(problems)}")
    if problems := list(_differences(manifest, manifest_sha256, digests)):
        raise VerificationError(f"{STATEMENT_NAME}: {'; '.join(problems[:5])}")
    return Statement(chip, recipe, digests | {STATEMENT_NAME: hashlib.sha256(content).hexdigest()})


def _parse(content: bytes) -> tuple[str, object, dict[str, str]]:
    try:
        document = parse_json(content)
        parameters = document["predicate"]["buildDefinition"]["externalParameters"]
        chip, recipe = parameters["chip"], parameters["recipe"]
        digests = {subject["name"]: subject["digest"]["sha256"] for subject in document["subject"]}
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"{STATEMENT_NAME}: not a statement of a publication ({error!r})") from error
    for text in (chip, *digests):
        if not isinstance(text, str) or not text.isprintable():
            raise VerificationError(f"{STATEMENT_NAME}: {text!r} is not printable text")
    try:
        list(map(inside_release, digests))
    except ValueError as error:
        raise VerificationError(f"{STATEMENT_NAME}: {error}") from None
    for path, digest in digests.items():
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise VerificationError(f"{STATEMENT_NAME}: {path}: {digest!r} is not a SHA-256")
    return chip, recipe, digests


def _differences(manifest: Manifest, manifest_sha256: str, digests: Mapping[str, str]) -> Iterator[str]:
    """What the statement says of the release's files must be what the manifest says; what it adds must be documents."""
    released = {file.path: file.sha256 for file in manifest.files} | {MANIFEST_NAME: manifest_sha256}
    for path, sha256 in released.items():
        if path not in digests:
            yield f"{path} is in the manifest, but not in the statement"
        elif digests[path] != sha256 and path != CARD_NAME:
            yield f"{path} has another digest in the manifest"
    for path in sorted(digests.keys() - released.keys()):
        if "/" in path or "\\" in path or PurePosixPath(path).suffix == ".safetensors":
            yield f"{path} is added; a publication adds documents beside the manifest, no tensors"
        elif path in (STATEMENT_NAME, SIGNATURE_NAME):
            yield f"{path} cannot be listed: it is written after the statement"

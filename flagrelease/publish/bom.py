"""`bom.cdx.json`: a CycloneDX 1.6 bill of materials of the release (an ML-BOM), from the manifest's own digests.

It names the model, what it was made from, who provides that, what made it, and every file with its SHA-256. It holds no
time and no machine: the same records give the same bytes, serial number included. Format:
https://cyclonedx.org/docs/1.6/json/; a tool that reads CycloneDX needs nothing of ours.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from flagrelease.publish.hubs.names import CARD_NAME
from flagrelease.publish.losses import lossless
from flagrelease.publish.records import Records
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.records.provenance import PROJECT

_MODEL, _SOURCE, _TOOL = "release", "source", "flagrelease"  # how parts of the document name each other


def make_bom(records: Records, name: str) -> bytes:
    """The document of the release that is published as `name`, one newline at the end.

    The card is left out, since it takes the place of the file that the manifest lists; the statement has its digest.
    """
    files = {file.path: file.sha256 for file in records.manifest.files if file.path != CARD_NAME}
    files[MANIFEST_NAME] = records.manifest_sha256
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"{PROJECT}#{records.manifest_sha256}-{records.chip.id}-{name}")
    paths = sorted(files)
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"tools": {"components": [_tool(records)]}, "component": _model(records, name)},
        "components": [_source(records), *(_file(path, files[path]) for path in paths)],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [_SOURCE, *(f"file:{path}" for path in paths)]},
            {"ref": _SOURCE, "dependsOn": []},
            {"ref": _TOOL, "dependsOn": []},
            *({"ref": f"file:{path}", "dependsOn": []} for path in paths),
        ],
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _tool(records: Records) -> dict[str, Any]:
    return {
        "type": "application",
        "bom-ref": _TOOL,
        "name": records.manifest.tool.name,
        "version": records.manifest.tool.version,
        "externalReferences": [{"type": "vcs", "url": PROJECT}],
    }


def _model(records: Records, name: str) -> dict[str, Any]:
    target = records.target
    properties = {
        "chip": records.chip.id,
        "format": target.dtype,
        "layout": records.layout,
        "draft-stages": target.drafts,
        "lossless": "true" if lossless(records.manifest) else "false",
        "training": "none: the weights were only stored in another format",
        "report": "none" if records.report is None else records.report.verdict,
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": name,
        "version": records.manifest_sha256[:12],
        "description": f"{records.recipe.source.repo} for {records.chip.vendor} {records.product.name}",
        "hashes": _hashes(records.manifest_sha256),
        "licenses": [{"license": {"id": records.licence}}],
        "pedigree": {"ancestors": [_source(records, _SOURCE + "-ancestor")]},
        "modelCard": {"modelParameters": {"task": "text-generation", "architectureFamily": records.family.title}},
        "properties": [{"name": f"flagrelease:{key}", "value": value} for key, value in properties.items()],
    }


def _source(records: Records, ref: str = _SOURCE) -> dict[str, Any]:
    source = records.recipe.source
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "supplier": {"name": source.repo.partition("/")[0]},
        "name": source.repo,
        "version": source.revision,
        "licenses": [{"license": {"id": records.licence}}],
        "externalReferences": [
            {"type": "distribution", "url": f"https://huggingface.co/{source.repo}/tree/{source.revision}"}
        ],
        "properties": [
            {"name": "flagrelease:identity", "value": records.manifest.source.identity},
            {"name": "flagrelease:checked", "value": records.manifest.source.checked_against},
        ],
    }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _file(path: str, sha256: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": _hashes(sha256)}

"""Provenance: an in-toto statement about every published file, with the SLSA provenance predicate.

Formats: in-toto Statement v1 (https://in-toto.io/Statement/v1), SLSA provenance v1 (https://slsa.dev/provenance/v1).
All of it is known already: no file is read again. It holds no time and no machine, so the same publication has the same
statement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flagrelease.publish.records import Records
from flagrelease.publish.run_files import SOURCE

STATEMENT_NAME = "provenance.intoto.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def make_statement(records: Records, digests: Mapping[str, str]) -> bytes:
    """The statement about `digests` (path -> SHA-256), sorted by path; one newline at the end."""
    manifest, source = records.manifest, records.manifest.source
    document: dict[str, Any] = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path, "digest": {"sha256": digests[path]}} for path in sorted(digests)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{SOURCE}/blob/v{manifest.tool.version}/docs/publishing.md#provenance",
                "externalParameters": {
                    "recipe": manifest.recipe,
                    "target": manifest.target.model_dump(mode="json"),
                    "chip": records.chip.id,
                },
                "internalParameters": {"options": manifest.options, "plan": manifest.plan},
                "resolvedDependencies": [
                    {
                        "uri": f"https://huggingface.co/{source.repo}/tree/{source.revision}",
                        "name": source.repo,
                        "digest": {"sha256": source.identity},
                    }
                ],
            },
            "runDetails": {
                "builder": {"id": SOURCE, "version": {"flagrelease": manifest.tool.version}},
                "metadata": {"invocationId": records.manifest_sha256},
            },
        },
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

"""A new manifest for a release whose files stay: the recipe that it was made by says something else of it now."""

from __future__ import annotations

from pathlib import Path

from flagrelease.convert.planning.plan import Plan, ReleasePlan
from flagrelease.durable.files import write_whole
from flagrelease.records.manifest import MANIFEST_NAME, Manifest


def record_again(folder: Path, plan: Plan, release: ReleasePlan, manifest: Manifest) -> None:
    """Write the manifest that a conversion under today's recipe would write. `outdated.look` has found the same bytes.

    Reports and signatures name a manifest by its digest, so those of the old one do not count for the new one.

    Raises:
        ResourceError: the system refuses.
    """
    today = plan.provenance
    source = manifest.source.model_copy(
        update={"repo": today.repo, "revision": today.revision, "license": today.license}
    )
    now = manifest.model_copy(
        update={
            "model": today.model,
            "source": source,
            "recipe": today.recipe,
            "options": plan.options.model_dump(mode="json"),
            "plan": release.digest,
        }
    )
    write_whole(folder / MANIFEST_NAME, now.to_json())

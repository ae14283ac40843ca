"""A conversion under `--disk`, shown on the terminal: two bars while it runs, and where each release is at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from flagrelease import console
from flagrelease.convert.codecs.lookup import Lookup
from flagrelease.convert.disk.conversion import convert_inside
from flagrelease.convert.planning.passes import DiskPlan
from flagrelease.convert.planning.plan import Plan
from flagrelease.publish.staging.place import Place
from flagrelease.source.digests import Claims


def convert_and_say(
    plan: Plan, disk: DiskPlan, out: Path, places: Mapping[str, Place], workers: int, lookup: Lookup, claims: Claims
) -> dict[str, Any]:
    """`convert_inside` with its progress on stderr; returns what `convert --json` prints.

    Raises:
        FlagReleaseError: as `convert_inside`.
    """
    total = sum(file.size for file in plan.files)
    console.say(f"{len(disk.passes)} passes, at most {console.human_bytes(disk.peak)} of the disk at any moment")
    with console.Display() as display:
        manifests = convert_inside(
            plan, disk, out, places, workers=workers, lookup=lookup, claims=claims,
            progress=lambda done: display("convert", done, total, "B"),
            handed_over=lambda done: display("hand over", done, total, "B"),
        )  # fmt: skip
    return {
        "out": str(out),
        "peak_disk_bytes": disk.peak,
        "releases": {
            name: {
                "place": places[name].address,
                "plan": manifest.plan,
                "target": manifest.target.model_dump(mode="json"),
                "files": len(manifest.files),
                "bytes": sum(file.size for file in manifest.files),
                "elements": manifest.elements.model_dump(mode="json"),
            }
            for name, manifest in manifests.items()
        },
    }


def show_handed_over(document: Mapping[str, Any]) -> None:
    """Where each release is now."""
    rows = console.table("release", ">files", ">bytes", ">", "place")
    for name, one in document["releases"].items():
        size = one["bytes"]
        rows.add_row(name, f"{one['files']}", f"{size:,}", console.human_bytes(size), escape(one["place"]))
    console.out().print(rows)
    console.out().print(
        "Every file is whole in its place. Nothing was validated or published yet: fetch a release to where it is "
        "validated, then publish it (docs/small-disks.md)."
    )

"""What the tests of shared conversions have in common: make parts, merge them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.sharing.merge import merge_parts
from flagrelease.convert.sharing.part import PartResult, convert_part
from flagrelease.convert.sharing.shares import divide
from flagrelease.records.manifest import Manifest
from flagrelease.source.digests import Claims


def run_part(plan: Plan, number: int, count: int, out: Path, claims: Claims | None = None) -> PartResult:
    share = divide(plan, count)[number - 1]
    told = lambda done: None  # noqa: E731
    return convert_part(plan, share, out, workers=2, lookup=cpu_lookup, progress=told, claims=claims or {})


def run_parts(plan: Plan, count: int, out: Path, only: Iterable[int] | None = None) -> None:
    for number in range(1, count + 1) if only is None else only:
        run_part(plan, number, count, out)


def run_merge(plan: Plan, out: Path) -> dict[str, Manifest]:
    return merge_parts(plan, out, workers=2, progress=lambda done: None)

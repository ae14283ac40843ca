"""What the converter's tests share: plan, run, compare."""

from __future__ import annotations

from pathlib import Path

from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import Plan, make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.manifest import Manifest
from flagrelease.source.source import Source, read_source


def plan_of(checkpoint: Path | Source, *targets: str, o_groups: str = "shared", **options: object) -> Plan:
    source = checkpoint if isinstance(checkpoint, Source) else read_source(checkpoint)
    wanted = [parse_target(target, o_groups) for target in targets]  # type: ignore[arg-type]
    return make_plan(source, wanted, ConvertSpec(**options))  # type: ignore[arg-type]


def run_plan(plan: Plan, out: Path, workers: int = 2) -> dict[str, Manifest]:
    return convert(plan, out, workers=workers, lookup=cpu_lookup, progress=lambda done: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

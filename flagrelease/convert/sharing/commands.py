"""What `convert` does with --part and --merge, and what it says of it."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from flagrelease import console
from flagrelease.convert.codecs.lookup import Lookup
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.earlier import PARTS_FOLDER
from flagrelease.convert.sharing.driver import convert_on, need_of
from flagrelease.convert.sharing.merge import merge_parts
from flagrelease.convert.sharing.part import PartResult, convert_part
from flagrelease.convert.sharing.shares import Share, divide
from flagrelease.extras import require_extra
from flagrelease.records.manifest import Manifest
from flagrelease.source.digests import Claims


def make_part(
    plan: Plan, part: tuple[int, int], out: Path, workers: int, lookup: Lookup, claims: Claims, as_json: bool
) -> None:
    """Make part `(I, N)`; say where it is and what comes next."""
    share = divide(plan, part[1])[part[0] - 1]
    with console.progress(f"convert part {share}", share.nbytes) as report:
        told = console.saying_where_it_resumes(report.to, 0)
        result = convert_part(plan, share, out, workers=workers, lookup=lookup, progress=told, claims=claims)
    document = {
        "part": str(share),
        "folder": str(result.folder),
        "files": share.names(plan),
        "bytes": share.nbytes,
        "complete_before": result.complete_before,
    }
    console.show(as_json, document, lambda: _show(share, result))
    console.say(
        f"when all {share.count} parts are finished and lie in {out / PARTS_FOLDER}, run the same command with --merge "
        f"instead of --part {share}"
    )


def _show(share: Share, result: PartResult) -> None:
    before = ", finished already" if result.complete_before else ""
    size = console.human_bytes(share.nbytes)
    text = f"part {share}{before}: {len(share.files)} files, {share.nbytes:,} bytes ({size}) in {result.folder}"
    console.out().print(escape(text))


def merge_shown(plan: Plan, out: Path, workers: int) -> dict[str, Manifest]:
    """Make the releases of their parts, under a progress display."""
    with console.progress("merge", plan.bytes_to_write) as report:
        return merge_parts(plan, out, workers=workers, progress=report.to)


def convert_in_cluster(
    plan: Plan, out: Path, address: str, parts: int | None, workers: int | None, claims: Claims
) -> dict[str, Manifest]:
    """Make all parts on the nodes of a Ray cluster, and merge them.

    Args:
        address: of the cluster.
        parts: how many; None: one for each node.
        workers: threads of a job; None: as many as the smallest node has CPUs.
        claims: stated digests of source files.

    Raises:
        ResourceError: Ray is not installed, there is no such cluster; and as `driver.convert_on`.
    """
    require_extra("ray", "--executor ray")
    from flagrelease.convert.sharing.ray_cluster import RayCluster

    with RayCluster(address) as cluster, console.progress("convert", plan.bytes_to_write) as report:
        need = need_of(plan, cluster.nodes(), workers)
        told = console.saying_where_it_resumes(report.to, 0)
        return convert_on(cluster, plan, out, need=need, count=parts, progress=told, say=console.say, claims=claims)

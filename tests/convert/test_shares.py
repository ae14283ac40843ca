"""Which files each of several machines makes, and what it reads for them."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import plan_of
from sharing_runs import run_part

from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.sharing.shares import divide, parse_part
from flagrelease.errors import UsageError
from flagrelease.shard.reader import TensorReader
from flagrelease.source.source import Source

KINDS = {
    "ranks": (("bf16:mp8",), {}),
    "ranks in files": (("fp8:mp8",), {"rank_part_bytes": 1_000_000}),
    "whole tensors": (("bf16:hf",), {"max_file_bytes": 1_000_000}),
    "both": (("bf16:mp8", "fp8:hf"), {"max_file_bytes": 2_000_000}),
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda name: name.replace(" ", "-"))
def plan(request: pytest.FixtureRequest, checkpoint: Path) -> Plan:
    targets, options = KINDS[request.param]
    return plan_of(checkpoint, *targets, **options)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_shares_hold_every_file_once_and_are_balanced(plan: Plan, count: int) -> None:
    shares = divide(plan, count)
    assert sorted(number for share in shares for number in share.files) == list(range(len(plan.files)))
    assert all(share.files for share in shares)
    sizes = [share.nbytes for share in shares]
    assert sizes == [sum(plan.files[number].size for number in share.files) for share in shares]
    # No way of sharing out whole files can promise more than this: a fair share, and one file.
    assert max(sizes) <= sum(sizes) / count + max(file.size for file in plan.files)


def test_every_tensor_of_a_release_is_recorded_by_whoever_reads_it_whole(plan: Plan) -> None:
    shares = divide(plan, 3)
    places = {tensor.spec.name: order for order, tensor in enumerate(plan.source.tensors)}
    for number, release in enumerate(plan.releases):
        recorded: set[int] = set()
        for share in shares:
            held = {one.order for n in share.files if plan.files[n].release == number for one in plan.files[n].slices}
            left = {order for where, order in share.elsewhere if where == number}
            assert left <= held
            recorded |= held - left
        assert recorded == {places[tensor.spec.name] for tensor, _, _ in release.parts.values()}
        for job in (job for share in shares for job in share.of(plan).jobs):
            assert job.rows is None or 0 < job.rows[1] - job.rows[0] < job.tensor.weight.shape[0]


def test_a_share_alone_reads_the_source_once_and_records_all(plan: Plan) -> None:
    (share,) = divide(plan, 1)
    assert not share.elsewhere
    assert share.bytes_to_read == plan.bytes_to_read
    assert share.of(plan).jobs == plan.jobs


@pytest.mark.parametrize("kind", ["ranks", "both"])
def test_shares_are_the_same_on_every_machine(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    targets, options = KINDS[kind]
    elsewhere = shutil.copytree(checkpoint, tmp_path / "another folder")
    assert divide(plan_of(checkpoint, *targets, **options), 3) == divide(plan_of(elsewhere, *targets, **options), 3)


def test_a_rank_reads_its_own_rows_and_one_part_the_whole_tensor(checkpoint: Path) -> None:
    """By the rule of the layout: wq_b is cut along its rows, a norm is on every rank, an expert on one."""
    plan = plan_of(checkpoint, "bf16:mp8")
    shares = divide(plan, 8)
    whole = rows = 0
    for share in shares:
        for job in share.of(plan).jobs:
            name, shape = job.tensor.spec.name, job.tensor.weight.shape
            if name.endswith("attn.wq_b.weight") and job.rows is not None:
                rank = share.number - 1
                assert job.rows == (shape[0] // 8 * rank, shape[0] // 8 * (rank + 1))
                rows += 1
            elif name.endswith("attn.wq_b.weight"):
                whole += 1
            elif ".experts." in name:
                assert job.rows is None, "nobody else reads it"
    layers = sum(tensor.spec.name.endswith("attn.wq_b.weight") for tensor in plan.source.tensors)
    assert (whole, rows) == (layers, 7 * layers)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (("bf16:mp8",), {}),
        (("fp8:mp8", "bf16:hf"), {"max_file_bytes": 2_000_000, "lossy_repack": "allow"}),
    ],
)
def test_the_plan_says_what_each_part_reads(
    targets: tuple[str, ...],
    options: dict[str, object],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(checkpoint, *targets, **options)
    shares = divide(plan, 3)
    read: list[int] = []
    original = TensorReader.read

    def counted(self: TensorReader, meta: object, offset: int, data: object) -> None:
        read.append(memoryview(data).nbytes)  # type: ignore[arg-type]
        original(self, meta, offset, data)  # type: ignore[arg-type]

    monkeypatch.setattr(TensorReader, "read", counted)
    for share in shares[:2]:
        read.clear()
        run_part(plan, share.number, 3, tmp_path)
        assert sum(read) == share.bytes_to_read


def test_source_files_are_compared_by_one_part_each(checkpoint: Path) -> None:
    plan = plan_of(checkpoint, "bf16:mp8")
    names = sorted(header.file.name for header in plan.source.index.headers)
    sizes = {header.file.name: header.file_size for header in plan.source.index.headers}
    shares = divide(plan, 3)
    assert sorted(name for share in shares for name in share.sources) == names
    for share in shares:
        assert share.bytes_to_compare == sum(sizes[name] for name in share.sources)


def test_more_parts_than_files_are_refused_by_number(checkpoint: Path) -> None:
    with pytest.raises(
        UsageError, match=r"9 parts: the plan has 8 files, .* at most 8 parts; convert\.rank_part_bytes"
    ):
        divide(plan_of(checkpoint, "bf16:mp8"), 9)
    with pytest.raises(UsageError, match=r"2 parts: the plan has 1 files, .*convert\.max_file_bytes"):
        divide(plan_of(checkpoint, "bf16:hf"), 2)


@pytest.mark.parametrize("text", ["0/8", "9/8", "8", "1/0", "-1/8", "1/8/2", "a/b", "", "1 / 8"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write which part of how many"):
        parse_part(text)


def test_parts_are_counted_from_one() -> None:
    assert parse_part("1/8") == (1, 8)
    assert parse_part("8/8") == (8, 8)


@pytest.mark.slow
def test_v4_pro_on_64_machines_as_the_docs_say(full_size: Callable[[str], Source]) -> None:
    """The table of docs/cluster.md, from DeepSeek's own dimensions."""
    page = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
    source = full_size("pro")
    rows = defaultdict(list)
    for line in page.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[cells[0].strip("`")].append(cells[1:])
    for target, options, count in [
        ("bf16:mp8", {}, 8),
        ("bf16:mp64", {}, 64),
        ("bf16:mp8", {"rank_part_bytes": 6_000_000_000}, 64),
        ("bf16:hf", {}, 64),
    ]:
        shares = divide(plan_of(source, target, **options), count)
        written, read = [share.nbytes for share in shares], [share.bytes_to_read for share in shares]
        expected = [
            str(count),
            f"{sum(written) / 1e9:,.0f}",
            f"{min(written) / 1e9:.1f} to {max(written) / 1e9:.1f}",
            f"{min(read) / 1e9:.1f} to {max(read) / 1e9:.1f}",
            f"{sum(read) / 1e9:,.0f}",
        ]
        name = target + "".join(f", {key} {value // 10**9}GB" for key, value in options.items())
        assert [expected] == rows[name], (name, expected)

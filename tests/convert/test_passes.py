"""`--disk`: which files are made together. What a pass takes and reads is counted here again, from headers and jobs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from harness import contents, plan_of, run_plan

from flagrelease.cli import main
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.files import OutputFile
from flagrelease.convert.planning.passes import DiskPlan, only_files, plan_passes, record_bytes
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.assembly import assemble
from flagrelease.convert.running.conversion import write_files
from flagrelease.convert.running.journal import open_journal
from flagrelease.errors import ResourceError
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.source.file_check import FileCheck
from flagrelease.source.source import Source

THREE = ("bf16:hf", "fp8:hf", "bf16:mp8")


@pytest.fixture(scope="module")
def three(checkpoint: Path) -> Plan:
    return plan_of(checkpoint, *THREE, max_file_bytes=2_000_000)


def least_of(plan: Plan) -> int:
    return plan_passes(plan, 10**15).least


def read_by_jobs(plan: Plan, disk: DiskPlan) -> list[int]:
    """Bytes that the jobs of each pass read: of each visit the weight and its scale."""
    return [
        sum(
            job.tensor.weight.nbytes + (job.tensor.scale.nbytes if job.tensor.scale else 0)
            for job in only_files(plan, one.files).jobs
        )
        for one in disk.passes
    ]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_passes_hold_every_file_once_and_fit_the_budget(three: Plan, share: float) -> None:
    least = least_of(three)
    budget = least + int(share * three.bytes_to_write)
    disk = plan_passes(three, budget)
    assert sorted(n for one in disk.passes for n in one.files) == list(range(len(three.files)))
    sizes = [sum(three.files[n].size for n in one.files) for one in disk.passes]
    assert [one.nbytes for one in disk.passes] == sizes
    assert disk.peak == max(sizes) + sum(map(record_bytes, three.releases)) <= budget
    assert [one.bytes_to_read for one in disk.passes] == read_by_jobs(three, disk)
    assert len(disk.passes) == 1 if share == 1.0 else len(disk.passes) > 1


def test_the_least_budget_works_and_one_byte_less_is_refused(three: Plan) -> None:
    least = least_of(three)
    assert plan_passes(three, least).peak == least
    largest = max(three.files, key=lambda file: file.size)
    name = f"{three.releases[largest.release].target.folder}/{largest.name} ({largest.size:,} bytes)"
    with pytest.raises(ResourceError, match=f"{least:,} bytes are the least that would do") as caught:
        plan_passes(three, least - 1)
    assert name in str(caught.value)
    assert f"--disk of {least - 1:,} bytes" in str(caught.value)
    with pytest.raises(ResourceError, match=f"and {len(three.files) - 5} more"):
        plan_passes(three, 1)


def test_a_budget_for_everything_reads_as_much_as_no_budget(three: Plan) -> None:
    assert plan_passes(three, 10**15).bytes_to_read == three.bytes_to_read


def test_releases_of_whole_tensors_share_the_reading_of_a_pass(checkpoint: Path) -> None:
    plan = plan_of(checkpoint, "bf16:hf", "native:hf", max_file_bytes=1_500_000)
    disk = plan_passes(plan, least_of(plan) + plan.bytes_to_write // 4)
    assert len(disk.passes) > 3
    alone = sum(plan_of(checkpoint, target, max_file_bytes=1_500_000).bytes_to_read for target in ("bf16:hf",))
    assert disk.bytes_to_read < 1.5 * alone  # release by release it would be twice, and more
    together = [{plan.files[n].release for n in one.files} for one in disk.passes]
    assert {0, 1} in together


def test_ranks_in_parts_are_read_once_and_whole_ranks_once_a_pass(checkpoint: Path) -> None:
    """Parts of all ranks that hold the same layers are made together, so only what lies at a border is read again."""
    whole = plan_of(checkpoint, "bf16:mp8")
    parts = plan_of(checkpoint, "bf16:mp8", rank_part_bytes=400_000)
    assert len(parts.files) > 30
    budget = record_bytes(whole.releases[0]) + whole.bytes_to_write // 3
    by_rank = plan_passes(whole, budget)
    assert len(by_rank.passes) == 4
    assert by_rank.bytes_to_read > 2 * whole.bytes_to_read
    by_place = plan_passes(parts, record_bytes(parts.releases[0]) + parts.bytes_to_write // 3)
    assert by_place.bytes_to_read < 1.5 * parts.bytes_to_read


def test_the_order_depends_on_plan_and_budget_alone(checkpoint: Path, three: Plan) -> None:
    again = plan_of(checkpoint, *THREE, max_file_bytes=2_000_000)
    budget = least_of(three) + 3_000_000
    assert plan_passes(again, budget) == plan_passes(three, budget)


@pytest.mark.parametrize("target", [pytest.param("int8:hf", marks=pytest.mark.slow), "bf16:mp8", "native:hf"])
def test_records_take_no_more_than_is_planned_for_them(
    target: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Journal, documents and manifest of a real conversion; the journal stays if its removal is left out."""
    monkeypatch.setattr("flagrelease.convert.running.journal.Journal.remove", lambda self: None)
    plan = plan_of(checkpoint, target, max_file_bytes=2_000_000, lossy_repack="allow")
    run_plan(plan, tmp_path)
    kept = sum(len(data) for name, data in contents(tmp_path).items() if not name.endswith(".safetensors"))
    planned = record_bytes(plan.releases[0])
    assert "journal.jsonl" in " ".join(contents(tmp_path))
    assert planned / 5 < kept <= planned


def test_the_command_says_the_order_and_refuses_a_byte_too_few(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(checkpoint), "--target", "bf16:hf", "--target", "bf16:mp8", "--out", str(tmp_path), "--disk"]
    assert main([*words, "100GB", "--json"]) == 0
    least = json.loads(capsys.readouterr().out)["passes"]["least_bytes"]
    assert main([*words, str(least), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak_disk_bytes"] == found["passes"]["peak_bytes"] == least
    assert found["bytes_to_read"] == sum(one["bytes_to_read"] for one in found["passes"]["passes"])
    listed = {f"{release['folder']}/{file['path']}" for release in found["releases"] for file in release["files"]}
    assert {name for one in found["passes"]["passes"] for name in one["files"]} == listed
    assert main([*words, str(least)]) == 0
    text = capsys.readouterr().out
    assert f"disk    {least:,} bytes" in text
    assert re.search(r"written, handed over and deleted", text)
    assert main([*words, str(least - 1)]) == 4
    assert f"{least:,} bytes are the least that would do" in capsys.readouterr().err
    assert main([*words, "much"]) == 2
    assert "write a size as 500GB" in capsys.readouterr().err


def test_without_disk_nothing_is_said_of_passes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(checkpoint), "--target", "native:hf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passes"] is None


@pytest.mark.slow
def test_v4_pro_to_three_targets_inside_500_gb(full_size: Callable[[str], Source]) -> None:
    """The headers of V4-Pro are 865 GB of source; the releases are 8.1 TB, of which the largest file has 411 GB."""
    plan = plan_of(full_size("pro"), "bf16:hf", "bf16:mp8", "fp8:mp8", max_file_bytes=5 * 10**9)
    disk = plan_passes(plan, 500 * 10**9)
    assert plan.bytes_to_write > 8 * 10**12
    assert disk.peak <= 500 * 10**9
    assert 410 * 10**9 < disk.least < 412 * 10**9
    assert sorted(n for one in disk.passes for n in one.files) == list(range(len(plan.files)))
    assert len(disk.passes) <= 20
    assert plan.source.index.total_size < disk.bytes_to_read < 4 * plan.source.index.total_size


def test_checkpoints_of_one_file_still_make_a_plan(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1, num_nextn_predict_layers=0, compress_ratios=[0]))
    plan = plan_of(tmp_path, "native:hf")
    disk = plan_passes(plan, least_of(plan))
    assert [one.files for one in disk.passes] == [(0,)]


def test_files_written_pass_by_pass_are_those_of_one_pass(checkpoint: Path, tmp_path: Path) -> None:
    """Each finished file is told once, also one of an earlier run; files that are elsewhere are not written again."""
    plan = plan_of(checkpoint, "bf16:mp8", "native:hf", max_file_bytes=2_000_000)
    run_plan(plan, tmp_path / "at once")
    disk = plan_passes(plan, least_of(plan) + 1_000_000)
    assert len(disk.passes) > 4
    out = tmp_path / "by passes"
    journals = {n: open_journal(out / r.target.folder, plan, r) for n, r in enumerate(plan.releases)}
    held = {n: journal for n, journal in journals.items() if journal is not None}
    told: list[tuple[int, str]] = []

    def write(part: Plan, elsewhere: Collection[int] = ()) -> None:
        write_files(
            part, out, held, 2, cpu_lookup, lambda done: None, FileCheck(plan.source.files, {}),
            elsewhere=elsewhere, finished=lambda file: told.append((file.release, file.name)),
        )  # fmt: skip

    for one in disk.passes:
        write(only_files(plan, one.files))
    assert sorted(told) == sorted((file.release, file.name) for file in plan.files)
    lines = {n: (journal.work / "journal.jsonl").read_bytes().count(b"\n") for n, journal in held.items()}
    told.clear()
    last = only_files(plan, disk.passes[-1].files)
    write(last)
    assert sorted(told) == sorted((file.release, file.name) for file in last.files)
    gone = held[last.files[0].release].work / last.files[0].name
    content = gone.read_bytes()
    gone.unlink()
    write(last, elsewhere=[0])
    assert not gone.exists()
    gone.write_bytes(content)
    assert {n: (journal.work / "journal.jsonl").read_bytes().count(b"\n") for n, journal in held.items()} == lines
    for n, journal in held.items():
        assemble(plan, plan.releases[n], out / plan.releases[n].target.folder, journal, ())
        journal.close()
    assert contents(out) == contents(tmp_path / "at once")


def test_what_hears_of_a_finished_file_can_end_the_work(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, "native:hf", max_file_bytes=1_000_000)
    journal = open_journal(tmp_path / "native-hf", plan, plan.releases[0])
    assert journal is not None

    def refuse(file: OutputFile) -> None:
        raise ResourceError(f"no room for {file.name}")

    with pytest.raises(ResourceError, match="no room for model-"):
        write_files(
            plan,
            tmp_path,
            {0: journal},
            2,
            cpu_lookup,
            lambda done: None,
            FileCheck(plan.source.files, {}),
            finished=refuse,
        )
    journal.close()

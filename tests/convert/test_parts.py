"""`--part I/N` and `--merge`: the bytes and the manifest of one machine; what is missing, mixed or damaged is named."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crashes import Crash, Crashes
from harness import contents, plan_of, run_plan
from sharing_runs import run_merge, run_part, run_parts

from flagrelease.cli import main
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running import chunks, lanes
from flagrelease.convert.running.journal import WORK_FOLDER
from flagrelease.convert.sharing import part_folder
from flagrelease.convert.sharing.part_folder import DONE_NAME
from flagrelease.convert.sharing.shares import divide
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest
from flagrelease.shard import writer
from flagrelease.source.digests import read_digest_file

TARGETS = ("fp8:mp8", "bf16:hf")
OPTIONS = {"max_file_bytes": 8_000_000}


@pytest.fixture(scope="module")
def plan(checkpoint: Path) -> Plan:
    return plan_of(checkpoint, *TARGETS, **OPTIONS)


@pytest.fixture(scope="module")
def alone(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    run_plan(plan, out)
    return contents(out)


@pytest.fixture(scope="module")
def made(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts")
    run_parts(plan, 3, out)
    return out


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """An output folder with three finished parts."""
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_BYTES", 64 << 10)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(lanes, "CHECKPOINT_BYTES", 256 << 10)


def release_of(out: Path, number: int, folder: str = "fp8-mp8") -> Path:
    return out / "parts" / f"{number}-of-3" / folder / WORK_FOLDER


def test_three_parts_make_what_one_machine_makes(finished: Path, plan: Plan, alone: dict[str, bytes]) -> None:
    manifests = run_merge(plan, finished)
    assert contents(finished) == alone
    assert manifests == {folder: read_manifest(finished / folder) for folder in ("fp8-mp8", "bf16-hf")}


@pytest.mark.parametrize(("target", "options", "count"), [
    ("bf16:mp16", {"o_groups": "split"}, 5),
    ("native:mp8", {"rank_part_bytes": 600_000}, 8),
])  # fmt: skip
def test_ranks_are_cut_alike(
    target: str, options: dict[str, object], count: int, checkpoint: Path, tmp_path: Path
) -> None:
    plan = plan_of(checkpoint, target, **options)  # type: ignore[arg-type]
    run_plan(plan, tmp_path / "alone")
    run_parts(plan, count, tmp_path / "out")
    run_merge(plan, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_machines_without_a_shared_folder(
    checkpoint: Path, plan: Plan, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Each has a download of its own, with other times; their folders are copied into one another afterwards."""
    for number in (1, 2, 3):
        own = shutil.copytree(checkpoint, tmp_path / f"download {number}")
        for path in own.rglob("*.safetensors"):
            os.utime(path, (number, number))
        run_part(plan_of(own, *TARGETS, **OPTIONS), number, 3, tmp_path / f"out {number}")
        shutil.copytree(tmp_path / f"out {number}", tmp_path / "together", dirs_exist_ok=True)
    run_merge(plan, tmp_path / "together")
    assert contents(tmp_path / "together") == alone


@pytest.mark.usefixtures("small_steps")
def test_a_part_that_was_killed_goes_on(
    finished: Path, plan: Plan, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(finished / "parts" / "2-of-3")
    crashes = Crashes(monkeypatch)
    for stop_at in (3, 14, 60, 110):
        crashes.arm(stop_at)
        with pytest.raises(Crash):
            run_part(plan, 2, 3, finished)
        crashes.disarm()
        with pytest.raises(ResourceError, match=r"cannot be merged: part 2/3 is (missing|not finished)"):
            run_merge(plan, finished)
        assert not list(finished.glob(f"*/{MANIFEST_NAME}"))
    assert crashes.calls < 400, "all of it was done again"
    run_part(plan, 2, 3, finished)
    run_merge(plan, finished)
    assert contents(finished) == alone


@pytest.mark.parametrize("stride", [pytest.param(101, id="sample"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_a_merge_that_was_killed_goes_on(
    stride: int, made: Path, plan: Plan, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes = Crashes(monkeypatch)
    out = shutil.copytree(made, tmp_path / "counted")
    crashes.arm(10**6)
    run_merge(plan, out)
    total = crashes.calls
    crashes.disarm()
    assert total > 100
    for stop_at in range(3, total + 1, stride):
        out = shutil.copytree(made, tmp_path / str(stop_at))
        crashes.arm(stop_at)
        with pytest.raises(Crash):
            run_merge(plan, out)
        crashes.disarm()
        for folder in ("fp8-mp8", "bf16-hf"):
            if (out / folder / MANIFEST_NAME).is_file():
                manifest = read_manifest(out / folder)
                assert all((out / folder / file.path).stat().st_size == file.size for file in manifest.files)
        run_merge(plan, out)
        assert contents(out) == alone, stop_at
        shutil.rmtree(out)


def test_a_finished_part_is_left_alone(finished: Path, plan: Plan) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run_part(plan, 2, 3, finished).complete_before
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == stamps


def test_after_the_merge_nothing_is_left_to_do(finished: Path, plan: Plan) -> None:
    run_merge(plan, finished)
    before = contents(finished)
    assert run_part(plan, 2, 3, finished).complete_before
    assert run_merge(plan, finished) == run_plan(plan, finished)
    assert contents(finished) == before


def test_what_a_kill_behind_the_manifest_left_is_removed(finished: Path, plan: Plan, alone: dict[str, bytes]) -> None:
    run_merge(plan, finished)
    control = finished / "bf16-hf" / WORK_FOLDER
    control.mkdir()
    for name in ("begun.json", "journal.jsonl", "lock"):
        (control / name).write_bytes(b"{}\n")
    run_merge(plan, finished)
    assert contents(finished) == alone


def test_everything_that_is_missing_is_named(finished: Path, plan: Plan) -> None:
    shares = divide(plan, 3)
    shutil.rmtree(finished / "parts" / "1-of-3")
    (finished / "parts" / "2-of-3" / DONE_NAME).unlink()
    lost = next(name for name in shares[2].names(plan) if name.startswith("bf16-hf"))
    (release_of(finished, 3, "bf16-hf") / Path(lost).name).unlink()
    with pytest.raises(ResourceError) as caught:
        run_merge(plan, finished)
    said = str(caught.value)
    assert "part 1/3 is missing; part 2/3 is not finished; " in said
    assert f"part 3/3: {lost} is missing or has another size" in said
    assert not list(finished.glob(f"*/{MANIFEST_NAME}"))


def drop_records(journal: Path, word: bytes) -> None:
    """Without the lines that have `word`; the others keep their checksums."""
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if word not in line]
    assert len(kept) < len(lines)
    journal.write_bytes(b"".join(kept))


def test_a_file_without_a_record_is_named(finished: Path, plan: Plan) -> None:
    name = Path(divide(plan, 3)[0].names(plan)[0]).name
    drop_records(release_of(finished, 1) / "journal.jsonl", f'"file":"{name}"'.encode())
    with pytest.raises(ResourceError, match=f"part 1/3: fp8-mp8/{name} has no record of being finished"):
        run_merge(plan, finished)


def test_a_tensor_without_a_record_is_named(finished: Path, plan: Plan) -> None:
    name = next(tensor.spec.name for tensor in plan.source.tensors if ".experts.3." in tensor.spec.name)
    for journal in finished.rglob("fp8-mp8/*/journal.jsonl"):
        if f'"tensor":"{name}"'.encode() in journal.read_bytes():
            drop_records(journal, f'"tensor":"{name}"'.encode())
    with pytest.raises(ResourceError, match=f"fp8-mp8: no part has a record of tensor '{name}'"):
        run_merge(plan, finished)


def test_a_file_that_was_copied_badly_is_named(finished: Path, plan: Plan) -> None:
    name = Path(divide(plan, 3)[1].names(plan)[0]).name
    path = next(finished.glob(f"parts/2-of-3/*/{WORK_FOLDER}/{name}"))
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ResourceError, match=rf"{name}: its SHA-256 is [0-9a-f]+, part 2/3 wrote .*run part 2/3 again"):
        run_merge(plan, finished)
    assert not list(finished.glob(f"*/{MANIFEST_NAME}"))
    shutil.rmtree(finished / "parts" / "2-of-3")
    run_part(plan, 2, 3, finished)
    run_merge(plan, finished)


def test_parts_that_read_different_bytes_are_refused(checkpoint: Path, plan: Plan, tmp_path: Path) -> None:
    """A download was damaged on one machine, where no sample of the identity looks."""
    readers: dict[str, list[int]] = {}
    for share in divide(plan, 3):
        for job in share.of(plan).jobs:
            if job.rows is None and job.tensor.weight.nbytes > 64 << 10:  # beyond what the identity reads whole
                readers.setdefault(job.tensor.weight.name, []).append(share.number)
    name = next(name for name, numbers in readers.items() if len(set(numbers)) > 1)
    copied = shutil.copytree(checkpoint, tmp_path / "damaged")
    meta = plan_of(copied, *TARGETS, **OPTIONS).source.index.tensors[name]
    with Path(meta.file).open("r+b") as file:
        file.seek(meta.end - 1)
        byte = file.read(1)[0]
        file.seek(meta.end - 1)
        file.write(bytes([byte ^ 1]))
    damaged, out = plan_of(copied, *TARGETS, **OPTIONS), tmp_path / "out"
    for number in (1, 2, 3):
        run_part(damaged if number == readers[name][0] else plan, number, 3, out)
    with pytest.raises(CheckpointError, match=f"tensor '{name}': parts ./3 and ./3 read different bytes"):
        run_merge(plan, out)


def test_a_part_of_something_else_is_refused(
    finished: Path, checkpoint: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = plan_of(checkpoint, *TARGETS, **OPTIONS, lossy_repack="allow")
    with pytest.raises(ResourceError, match=r"1-of-3: was made for another plan"):
        run_merge(other, finished)
    with pytest.raises(ResourceError, match=r"2-of-3: was made for another plan"):
        run_part(other, 2, 3, finished)
    with pytest.raises(ResourceError, match=r"parts: holds parts of 3, not of 4; give every part the same number"):
        run_part(plan, 1, 4, finished)
    (finished / "parts" / "2-of-3").rename(tmp_path / "aside")
    shutil.copytree(finished / "parts" / "1-of-3", finished / "parts" / "2-of-3")
    with pytest.raises(ResourceError, match=r"2-of-3: was made for another part \(1/3 there, 2/3 here\)"):
        run_merge(plan, finished)
    shutil.rmtree(finished / "parts" / "2-of-3")
    (tmp_path / "aside").rename(finished / "parts" / "2-of-3")
    monkeypatch.setattr(part_folder, "__version__", "9.9")
    with pytest.raises(ResourceError, match=r"another version of flagrelease \(0\.1\.0 there, 9\.9 here\)"):
        run_merge(plan, finished)


@pytest.mark.usefixtures("small_steps")
def test_an_unfinished_part_of_something_else_is_refused(
    checkpoint: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes = Crashes(monkeypatch)
    crashes.arm(40)
    with pytest.raises(Crash):
        run_part(plan, 1, 3, tmp_path)
    crashes.disarm()
    with pytest.raises(ResourceError, match="begun for another plan"):
        run_part(plan_of(checkpoint, *TARGETS, **OPTIONS, lossy_repack="allow"), 1, 3, tmp_path)
    monkeypatch.setattr(part_folder, "__version__", "9.9")
    with pytest.raises(ResourceError, match="begun for another version of flagrelease"):
        run_part(plan, 1, 3, tmp_path)
    monkeypatch.undo()
    (tmp_path / "parts" / "1-of-3").rename(tmp_path / "parts" / "2-of-3")
    with pytest.raises(ResourceError, match="begun for another part"):
        run_part(plan, 2, 3, tmp_path)


def locked(path: Path) -> Callable[[], None]:
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def test_two_drivers_on_one_part_are_refused(finished: Path, plan: Plan) -> None:
    (finished / "parts" / "2-of-3" / DONE_NAME).unlink()  # as while it is made
    unlock = locked(release_of(finished, 2) / "lock")
    for run in (lambda: run_part(plan, 2, 3, finished), lambda: run_merge(plan, finished)):
        with pytest.raises(ResourceError, match=r"2-of-3.*: in use by another flagrelease process"):
            run()
    unlock()
    run_part(plan, 2, 3, finished)
    run_merge(plan, finished)


def test_a_conversion_alone_and_parts_are_not_mixed(
    finished: Path, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ResourceError, match=r"parts of fp8-mp8 were made here with --part \(1-of-3\); merge them"):
        run_plan(plan, finished)
    words = ["convert", str(plan.source.files.root), "--target", "fp8:mp8", "--out", str(finished), "--disk", "1GB"]
    assert main([*words, "--hand-over", "true {file} {name}", "--hand-over-check", "true {name}"]) == 4
    assert "parts of fp8-mp8 were made here" in capsys.readouterr().err
    begun = tmp_path / "begun"
    (begun / "bf16-hf" / WORK_FOLDER).mkdir(parents=True)
    (begun / "bf16-hf" / WORK_FOLDER / "journal.jsonl").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"bf16-hf: a conversion without --part was begun here"):
        run_part(plan, 1, 3, begun)
    with pytest.raises(ResourceError, match="holds no parts; make them with --part 1/N"):
        run_merge(plan, tmp_path / "empty")


def test_stated_digests_are_shared_out_and_recorded(checkpoint: Path, tmp_path: Path) -> None:
    """The manifest names every file of the source that was compared, whichever part did it."""
    from hashlib import sha256

    lines = [f"{sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(checkpoint.glob("*.*"))]
    (tmp_path / "sums").write_text("\n".join(lines))
    words = ["convert", str(checkpoint), "--target", "native:mp8", "--source-digests", str(tmp_path / "sums")]
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    plan, out = plan_of(checkpoint, "native:mp8"), tmp_path / "out"
    claims = read_digest_file(tmp_path / "sums", plan.source.files)
    for number in (1, 2, 3):
        run_part(plan, number, 3, out, claims)
    run_merge(plan, out)
    assert len(read_manifest(out / "native-mp8").source.checked) == len(lines)
    assert contents(out) == contents(tmp_path / "alone")


def test_the_command_line(
    checkpoint: Path, alone: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["convert", str(checkpoint), "--target", "native:mp8", "--out", str(out), "--json"]
    assert main(["plan", *words[1:4], "--parts", "2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["parts"]
    for number in (1, 2):
        assert main([*words, "--part", f"{number}/2"]) == 0
        said = capsys.readouterr()
        made = json.loads(said.out)
        assert made["part"] == f"{number}/2"
        assert (made["files"], made["bytes"]) == (planned[number - 1]["files"], planned[number - 1]["bytes"])
        assert f"when all 2 parts are finished and lie in {out / 'parts'}" in said.err
    assert main([*words, "--merge"]) == 0
    assert not json.loads(capsys.readouterr().out)["releases"]["native-mp8"]["complete_before"]
    assert main([*words, "--merge"]) == 0
    assert json.loads(capsys.readouterr().out)["releases"]["native-mp8"]["complete_before"]
    assert main([*words, "--merge", "--part", "1/2"]) == 2
    assert main([*words, "--merge", "--disk", "1GB"]) == 2
    assert main([*words, "--part", "3/2"]) == 2
    assert main(["plan", *words[1:4], "--parts", "9"]) == 2
    capsys.readouterr()
    assert main(["plan", *words[1:4], "--parts", "2"]) == 0
    assert "what each machine does" in capsys.readouterr().out

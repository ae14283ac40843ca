"""`convert --disk`: three releases from a source that is larger than the budget, cut off and killed everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from crashes import Crash, Crashes
from disk_places import FolderPlace, folder_places, held, run_inside, watched
from harness import contents, plan_of, run_plan

from flagrelease.convert.disk import conversion
from flagrelease.convert.planning.passes import plan_passes
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running import chunks, lanes
from flagrelease.convert.running.journal import WORK_FOLDER
from flagrelease.errors import NetworkError, ResourceError
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.shard import writer

THREE = ("bf16:hf", "fp8:hf", "bf16:mp8")
CUT = {"max_file_bytes": 1_500_000, "rank_part_bytes": 900_000}


@pytest.fixture(scope="module")
def three(checkpoint: Path) -> Plan:
    return plan_of(checkpoint, *THREE, **CUT)


@pytest.fixture(scope="module")
def least(three: Plan) -> int:
    return plan_passes(three, 10**15).least


@pytest.fixture(scope="module")
def at_once(three: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("at-once")
    run_plan(three, out)
    return contents(out)


@pytest.fixture(scope="module")
def one(checkpoint: Path) -> Plan:
    return plan_of(checkpoint, "native:hf", max_file_bytes=2_500_000)


def records_only(out: Path) -> bool:
    return not [name for name in contents(out) if name.endswith(".safetensors")]


def test_the_releases_are_those_of_a_conversion_with_room_for_all(
    three: Plan, least: int, at_once: dict[str, bytes], tmp_path: Path
) -> None:
    assert least < three.source.index.total_size / 2
    out, places = tmp_path / "out", folder_places(three, tmp_path / "store")
    told: list[tuple[str, int]] = []
    with watched(out) as seen:
        manifests = run_inside(three, least, out, places, told)
    assert contents(tmp_path / "store") == at_once
    assert {name: manifest.to_json() for name, manifest in manifests.items()} == {
        name: at_once[f"{name}/{MANIFEST_NAME}"] for name in manifests
    }
    assert records_only(out)
    assert max(seen) <= least
    files = sum(file.size for file in three.files)
    for what in ("convert", "hand over"):
        counts = [done for kind, done in told if kind == what]
        assert counts == sorted(counts)
        assert counts[-1] == files


def test_a_budget_that_is_not_kept_to_is_seen(one: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the disk of the test above, where finished files are not deleted."""
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    out, least = tmp_path / "out", plan_passes(one, 10**15).least
    with watched(out) as seen:
        run_inside(one, least, out, folder_places(one, tmp_path / "store"))
    assert max(seen) > least


def test_a_place_that_is_cut_off_takes_the_rest_later(
    three: Plan, least: int, at_once: dict[str, bytes], tmp_path: Path
) -> None:
    out, budget = tmp_path / "out", least + 2_000_000
    sent: list[str] = []
    for left in (0, 3, 11):
        places = folder_places(three, tmp_path / "store")
        for place in places.values():
            place.left = left
        with pytest.raises(NetworkError, match="cut off"):
            run_inside(three, budget, out, places)
        assert held(out) <= budget
        assert not list((tmp_path / "store").rglob(MANIFEST_NAME))
        sent += [f"{name}/{file}" for name, place in places.items() for file in place.sent]
    places = folder_places(three, tmp_path / "store")
    run_inside(three, budget, out, places)
    sent += [f"{name}/{file}" for name, place in places.items() for file in place.sent]
    assert contents(tmp_path / "store") == at_once
    assert sorted(sent) == sorted(at_once), "a whole file was sent twice"


def test_again_asks_the_place_and_does_nothing(one: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_inside(one, 10**9, out, folder_places(one, tmp_path / "store"))
    places = folder_places(one, tmp_path / "store")
    told: list[tuple[str, int]] = []
    run_inside(one, 10**9, out, places, told)
    assert places["native-hf"].sent == []
    assert told == [("hand over", sum(file.size for file in one.files))]


@pytest.mark.parametrize("harm", ["lost", "damaged", "journal lost", "all lost"])
def test_what_the_place_does_not_hold_is_made_again(harm: str, one: Plan, tmp_path: Path) -> None:
    """After the last file was handed over; the place alone is believed, so what it lost is made again."""
    out, store = tmp_path / "out", tmp_path / "store"
    run_inside(one, 10**9, out, folder_places(one, store))
    whole = contents(store)
    (store / "native-hf" / MANIFEST_NAME).unlink()
    victim = one.files[1].name
    match harm:
        case "lost":
            (store / "native-hf" / victim).unlink()
        case "damaged":
            path = store / "native-hf" / victim
            path.write_bytes(path.read_bytes()[:-1] + b"\xaa")
        case "journal lost":
            shutil.rmtree(out)
        case "all lost":
            shutil.rmtree(store)
    places = folder_places(one, store)
    run_inside(one, 10**9, out, places)
    assert contents(store) == whole
    made = sorted(name for name in places["native-hf"].sent if name.endswith(".safetensors"))
    assert made == ([victim] if harm in ("lost", "damaged") else sorted(file.name for file in one.files))


def test_a_tensor_whose_record_was_lost_after_its_file_went_is_read_again(one: Plan, tmp_path: Path) -> None:
    """A kill can come between the end of a file and the record of its last tensor."""
    out, store = tmp_path / "out", tmp_path / "store"
    run_inside(one, 10**9, out, folder_places(one, store))
    whole = contents(store)
    (store / "native-hf" / MANIFEST_NAME).unlink()
    journal = out / "native-hf" / WORK_FOLDER / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    tensors = [n for n, line in enumerate(lines) if b'"tensor"' in line]
    journal.write_bytes(b"".join(line for n, line in enumerate(lines) if n not in tensors[2:5]))
    places = folder_places(one, store)
    run_inside(one, 10**9, out, places)
    assert contents(store) == whole
    assert places["native-hf"].sent == [MANIFEST_NAME]


@pytest.mark.slow
def test_another_budget_resumes_and_keeps_to_itself(
    three: Plan, least: int, at_once: dict[str, bytes], tmp_path: Path
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    for budget, left in ((least + 20_000_000, 2), (least, 7)):
        places = folder_places(three, store)
        for place in places.values():
            place.left = left
        with pytest.raises(NetworkError):
            run_inside(three, budget, out, places)
    with watched(out) as seen:
        run_inside(three, least, out, folder_places(three, store))
    assert max(seen) <= least
    assert contents(store) == at_once


def test_the_same_folder_takes_no_other_place_and_no_finished_release(one: Plan, tmp_path: Path) -> None:
    places = folder_places(one, tmp_path / "store")
    places["native-hf"].left = 1
    with pytest.raises(NetworkError):
        run_inside(one, 10**9, tmp_path / "out", places)

    class Another(FolderPlace):
        address = "another folder"

    with pytest.raises(ResourceError, match="was begun with place a folder, here it is another folder"):
        run_inside(one, 10**9, tmp_path / "out", {"native-hf": Another(tmp_path / "store")})
    run_plan(one, tmp_path / "finished")
    with pytest.raises(ResourceError, match="holds a finished release"):
        run_inside(one, 10**9, tmp_path / "finished", folder_places(one, tmp_path / "store"))


def test_a_conversion_without_a_budget_makes_files_that_are_elsewhere_again(one: Plan, tmp_path: Path) -> None:
    run_plan(one, tmp_path / "at-once")
    places = folder_places(one, tmp_path / "store")
    places["native-hf"].left = 2
    with pytest.raises(NetworkError):
        run_inside(one, 10**9, tmp_path / "out", places)
    run_plan(one, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "at-once")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_BYTES", 64 << 10)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(lanes, "CHECKPOINT_BYTES", 256 << 10)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("stride", [pytest.param(307, id="sample"), pytest.param(3, id="many", marks=pytest.mark.slow)])
def test_stop_at_a_system_call(stride: int, one: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine or of the place, which is in this process: what it wrote only half is not whole there."""
    budget = plan_passes(one, 10**15).least
    crashes = Crashes(monkeypatch)
    run_inside(one, budget, tmp_path / "counted", folder_places(one, tmp_path / "undisturbed"))
    total, whole = crashes.calls, contents(tmp_path / "undisturbed")
    assert total > 200
    for stop_at in range(1, total, stride):
        out, store = tmp_path / f"out{stop_at}", tmp_path / f"store{stop_at}"
        crashes.arm(stop_at)
        try:
            run_inside(one, budget, out, folder_places(one, store))
        except Crash:
            pass
        else:
            assert crashes.calls < stop_at > total - 50  # threads make a few calls more in one run than in another
        crashes.disarm()
        run_inside(one, budget, out, folder_places(one, store))
        assert contents(store) == whole, stop_at
        assert records_only(out)
        shutil.rmtree(out)
        shutil.rmtree(store)


def test_documents_that_change_meanwhile_are_refused(
    one: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flagrelease.errors import CheckpointError

    places = folder_places(one, tmp_path / "store")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b" " * (self.name == "LICENSE"))
    with pytest.raises(CheckpointError, match=r"LICENSE: 4 bytes when the work began, 5 now"):
        run_inside(one, 10**9, tmp_path / "out", places)
    assert not (tmp_path / "store" / "native-hf" / MANIFEST_NAME).exists()


def test_a_source_that_is_not_what_is_stated_gets_no_manifest(one: Plan, tmp_path: Path) -> None:
    from flagrelease.convert.codecs.lookup import cpu_lookup
    from flagrelease.errors import CheckpointError
    from flagrelease.source.digests import Claim

    claims = {one.source.index.headers[0].file.name: (Claim("sha256", "0" * 64, "digest-file"),)}
    with pytest.raises(CheckpointError, match="damaged or exchanged"):
        conversion.convert_inside(
            one, plan_passes(one, 10**9), tmp_path / "out", folder_places(one, tmp_path / "store"), workers=2,
            lookup=cpu_lookup, progress=lambda done: None, handed_over=lambda done: None, claims=claims,
        )  # fmt: skip
    assert not (tmp_path / "store" / "native-hf" / MANIFEST_NAME).exists()
    assert json.loads((tmp_path / "out" / "native-hf" / WORK_FOLDER / "begun.json").read_bytes())["facts"]["place"]

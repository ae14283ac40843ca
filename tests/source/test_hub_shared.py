"""A checkpoint on a hub, converted inside a disk budget, in parts, and by jobs of a cluster: same bytes as alone."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_places import folder_places, held, run_inside, watched
from harness import plan_of, run_plan
from hubs import REPO, StoredElsewhere, contents_of, huggingface

from flagrelease.cli import main
from flagrelease.convert.planning.memory import memory_bound
from flagrelease.convert.planning.passes import only_files, plan_passes, source_files
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.sharing.job import Made, Refused, job_of, run_pickled
from flagrelease.convert.sharing.merge import merge_parts
from flagrelease.convert.sharing.shares import divide
from flagrelease.errors import NetworkError
from flagrelease.records.manifest import read_manifest
from flagrelease.source.digests import stated_claims
from flagrelease.source.hub.blocks import MEMORY_BYTES
from flagrelease.source.hub.files import HubFiles
from flagrelease.source.hub.opening import files_at, place_of
from flagrelease.source.source import read_source

HF = f"hf://{REPO}"
STORE = "GET /store/.*"
CUT = {"max_file_bytes": 1_500_000}


@pytest.fixture(scope="module")
def in_files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """bf16:hf in several files, made from the folder."""
    return in_folder(checkpoint, tmp_path_factory.mktemp("alone"), "bf16:hf", **CUT)


@pytest.fixture(scope="module")
def in_ranks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """native:mp2, made from the folder."""
    return in_folder(checkpoint, tmp_path_factory.mktemp("alone"), "native:mp2")


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredElsewhere]:
    with huggingface(checkpoint, tmp_path / "cas", monkeypatch) as standing:
        yield standing


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensor files that were hashed whole."""
    names: list[str] = []
    stream = HubFiles.stream

    def counted(self: HubFiles, name: str) -> Iterator[memoryview]:
        if name.endswith(".safetensors"):
            names.append(name)
        return stream(self, name)

    monkeypatch.setattr(HubFiles, "stream", counted)
    return names


def on_hub(*targets: str, **options: object) -> Plan:
    return plan_of(read_source(files_at(place_of(HF))), *targets, **options)


def in_folder(checkpoint: Path, out: Path, *targets: str, **options: object) -> dict[str, bytes]:
    run_plan(plan_of(checkpoint, *targets, **options), out)
    return without_manifests(out)


def without_manifests(folder: Path) -> dict[str, bytes]:
    """A manifest says where the source was read and what it was compared with, so it differs."""
    return {name: content for name, content in contents_of(folder).items() if Path(name).name != "manifest.json"}


def fetched(hub: StoredElsewhere) -> Counter[str]:
    """How often the store was asked for each blob."""
    return Counter(seen.path.split("/")[2] for seen in hub.store.seen)


def test_a_disk_budget_smaller_than_the_source(
    hub: StoredElsewhere, tmp_path: Path, in_files: dict[str, bytes], streamed: list[str]
) -> None:
    """Each pass fetches the files that it reads, once, and hashes those of them that no pass before it hashed."""
    plan = on_hub("bf16:hf", **CUT)
    least = plan_passes(plan, 10**15).least
    assert least < plan.source.index.total_size / 2
    passes = plan_passes(plan, least).passes
    assert len(passes) > 3
    hub.store.seen.clear()
    out = tmp_path / "out"
    with watched(out) as seen:
        made = run_inside(plan, least, out, folder_places(plan, tmp_path / "store"))
    assert max(seen) <= least, "something of the source, or of another pass, lay on the disk"
    assert without_manifests(tmp_path / "store") == in_files
    assert sorted(streamed) == sorted(header.file.name for header in plan.source.index.headers)
    assert {len(manifest.source.checked) for manifest in made.values()} == {len(plan.source.files.stated)}
    most = Counter(name for one in passes for name in source_files(only_files(plan, one.files)))
    for name in streamed:
        assert fetched(hub)[plan.source.files.stated[name]] <= most[name]


def test_a_resumed_run_does_not_fetch_what_it_only_would_hash(
    hub: StoredElsewhere, tmp_path: Path, in_files: dict[str, bytes], streamed: list[str]
) -> None:
    plan = on_hub("bf16:hf", **CUT)
    budget = plan_passes(plan, 10**15).least
    first = plan_passes(plan, budget).passes[0].files
    out, store = tmp_path / "out", tmp_path / "store"
    places = folder_places(plan, store)
    places["bf16-hf"].left = len(first)  # the second pass is cut off
    with pytest.raises(NetworkError):
        run_inside(plan, budget, out, places)
    known = source_files(only_files(plan, first))
    assert known
    assert known <= set(streamed)
    streamed.clear()
    hub.store.seen.clear()
    (manifest,) = run_inside(plan, budget, out, folder_places(plan, store)).values()
    assert not known & set(streamed)
    assert len(manifest.source.checked) == len(plan.source.files.stated)
    assert without_manifests(store) == in_files


def test_the_command_line_with_a_budget(hub: StoredElsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["convert", HF, "--target", "native:hf", "--out", "work", "--disk", "40MB"]
    hand_over = ["--hand-over", "install -D {file} store/{release}/{name}"]
    check = ["--hand-over-check", "sha256sum store/{release}/{name}"]
    assert main([*words, *hand_over, *check]) == 0
    manifest = read_manifest(tmp_path / "store" / "native-hf")
    assert manifest.source.repo == REPO
    assert manifest.source.checked_against == "6 of 6 tensor files checked against the listing of Hugging Face"
    assert not list((tmp_path / "work").rglob("*.safetensors"))
    assert held(tmp_path / "work") < 40_000_000


def test_parts_and_their_merge(
    hub: StoredElsewhere, tmp_path: Path, in_ranks: dict[str, bytes], streamed: list[str]
) -> None:
    """Each part hashes files that it reads anyway; together they hash each once, and the manifest has all."""
    out = tmp_path / "out"
    words = ["convert", HF, "--target", "native:mp2", "--out", str(out)]
    for part in ("1/2", "2/2"):
        assert main([*words, "--part", part]) == 0
    assert len(streamed) == len(set(streamed)) == 6
    assert main([*words, "--merge"]) == 0
    assert without_manifests(out) == in_ranks
    source = read_manifest(out / "native-mp2").source
    assert (source.repo, source.revision) == (REPO, hub.repositories[REPO].branches["main"])
    assert source.checked_against == "6 of 6 tensor files checked against the listing of Hugging Face"
    plan = on_hub("bf16:hf", **CUT)
    for share in divide(plan, 2):
        jobs = only_files(plan, share.files)
        assert share.sources <= source_files(jobs)


def test_jobs_of_a_cluster_read_the_hub_themselves(
    hub: StoredElsewhere,
    checkpoint: Path,
    tmp_path: Path,
    in_ranks: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job takes the commit and the listing along, so all nodes read one revision, and no token."""
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTEDsecretPLANTEDsecretPLANTED01")
    plan, out = on_hub("native:mp2"), tmp_path / "out"
    folder = plan_of(checkpoint, "native:mp2")
    assert memory_bound(plan, 2) - memory_bound(folder, 2) == MEMORY_BYTES  # which a task declares
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "driver").write_text("t")
    claims = stated_claims(plan.source.files)
    shares = divide(plan, 2)
    jobs = [pickle.dumps(job_of(plan, share, 1, out, "t", 1, claims, 0.0)) for share in shares]
    assert not any(b"PLANTED" in job for job in jobs)
    hub.gated = (403, "not in the list")
    refusal = pickle.loads(run_pickled(jobs[0], "n1"))
    assert isinstance(refusal, Refused)
    assert refusal.kind == "network"
    assert f"{REPO}: HTTP 403: not in the list; huggingface wants an account that may do this" in refusal.message
    assert "(part 1/2 on " in refusal.message
    hub.gated = None
    with monkeypatch.context() as patch:
        patch.setattr("flagrelease.publish.reading.extra.importlib.util.find_spec", lambda name: None)
        refusal = pickle.loads(run_pickled(jobs[0], "n1"))
    assert isinstance(refusal, Refused)
    assert "huggingface_hub is not installed" in refusal.message
    for job in jobs:
        assert isinstance(pickle.loads(run_pickled(job, "n1")), Made)
    merge_parts(plan, out, workers=2, progress=lambda done: None)
    assert without_manifests(out) == in_ranks

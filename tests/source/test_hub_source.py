"""A checkpoint on a hub, read by ranges with the real clients from stand-ins: same bytes, and what goes wrong."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hubs import REPO, StoredElsewhere, commit, contents_of, huggingface, modelscope
from huggingface_standin import TOKEN
from loopback import Fault

from flagrelease.cli import main
from flagrelease.errors import CheckpointError
from flagrelease.records.manifest import read_manifest
from flagrelease.records.named import find_recipe
from flagrelease.records.recipe import read_recipe
from flagrelease.retry import Patience
from flagrelease.source.hub.opening import files_at, place_of

HF = f"hf://{REPO}"
STORE = "GET /store/.*"


@pytest.fixture(scope="module")
def from_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("from-folder")
    assert main(["convert", str(checkpoint), "--target", "bf16:hf", "--out", str(out)]) == 0
    return contents_of(out / "bf16-hf")


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredElsewhere]:
    hasty = partial(Patience, sleep=lambda _: None)
    monkeypatch.setattr("flagrelease.publish.reading.huggingface.Patience", hasty)
    with huggingface(checkpoint, tmp_path / "cas", monkeypatch) as standing:
        yield standing


def convert(out: Path, address: str = HF) -> int:
    return main(["convert", address, "--target", "bf16:hf", "--out", str(out)])


def same_but_for_the_manifest(out: Path, wanted: dict[str, bytes]) -> bool:
    found = contents_of(out / "bf16-hf")
    return found.keys() == wanted.keys() and all(
        found[name] == wanted[name] for name in wanted.keys() - {"manifest.json"}
    )


def test_the_same_bytes_as_from_a_folder(
    hub: StoredElsewhere, tmp_path: Path, from_folder: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its manifest says where it was read, and that every file was compared with the hub's digest."""
    assert convert(tmp_path / "out") == 0
    assert same_but_for_the_manifest(tmp_path / "out", from_folder)
    source = read_manifest(tmp_path / "out" / "bf16-hf").source
    assert (source.repo, source.revision) == (REPO, hub.repositories[REPO].branches["main"])
    assert source.checked_against == "6 of 6 tensor files checked against the listing of Hugging Face"
    assert main(["verify", str(tmp_path / "out" / "bf16-hf"), "--source", HF]) == 0
    assert not any(seen.authorised for seen in hub.store.seen)


def test_modelscope_gives_the_same_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_folder: dict[str, bytes]
) -> None:
    with modelscope(checkpoint, monkeypatch):
        assert convert(tmp_path / "out", f"modelscope://{REPO}@v1") == 0
    assert same_but_for_the_manifest(tmp_path / "out", from_folder)


def test_plan_and_inspect_ask_once_a_file_for_its_header(hub: StoredElsewhere, tmp_path: Path) -> None:
    words = ["plan", HF, "--target", "bf16:hf", "--out", str(tmp_path)]
    assert main(words) == 0
    assert hub.resolved <= 3 * 6  # six tensor files: the header, the samples of the identity, a table of routing
    assert main(["inspect", HF]) == 0


def test_an_expired_address_is_asked_for_again(
    hub: StoredElsewhere, tmp_path: Path, from_folder: dict[str, bytes]
) -> None:
    hub.good_for = 1
    assert convert(tmp_path / "out") == 0
    assert same_but_for_the_manifest(tmp_path / "out", from_folder)


def test_what_passes_is_waited_out(hub: StoredElsewhere, tmp_path: Path, from_folder: dict[str, bytes]) -> None:
    hub.store.faults = [
        Fault(STORE, "status", 3, 503),
        Fault(STORE, "status", 2, 429, {"Retry-After": "7"}),
        Fault(STORE, "lost", 3),
    ]
    assert convert(tmp_path / "out") == 0
    assert not any(fault.times for fault in hub.store.faults)
    assert same_but_for_the_manifest(tmp_path / "out", from_folder)


def test_a_store_that_falls_silent_is_asked_again(hub: StoredElsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's session itself waits for ever; its setting for downloads says how long a silence may be."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    ended = threading.Event()
    hub.store.faults = [Fault(STORE, "call", 1, hook=lambda: ended.wait() and None)]
    try:
        files = files_at(place_of(HF))
        name = next(name for name in files.names() if name.endswith(".safetensors"))
        (header,) = files.headers([name], lambda done, total: None)
    finally:
        ended.set()
    assert header.file.name == name


def test_a_hub_that_fails_for_good_leaves_nothing_that_looks_whole(
    hub: StoredElsewhere, tmp_path: Path, from_folder: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", HF, "--target", "bf16:hf", "--out", str(tmp_path)]) == 0
    before = hub.store.count(STORE)

    def enough() -> None:
        hub.store.faults.append(Fault(STORE, "status", 10_000, 503))

    hub.store.faults = [Fault(STORE, "call", before, hook=lambda: None), Fault(STORE, "call", 1, hook=enough)]
    assert convert(tmp_path / "out") == 6
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert not (tmp_path / "out" / "bf16-hf" / "manifest.json").exists()
    hub.store.faults = []
    assert convert(tmp_path / "out") == 0
    assert same_but_for_the_manifest(tmp_path / "out", from_folder)


def test_a_file_that_is_not_what_the_hub_lists_is_refused(
    hub: StoredElsewhere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte of a large tensor, which neither headers nor the identity show."""
    held = hub.repositories[REPO]
    name, entry = next((n, e) for n, e in sorted(held.commits[held.branches["main"]].items()) if "00003" in n)
    content = bytearray(held.blobs[entry.sha256 or ""])
    content[-1000] ^= 1
    held.blobs[entry.sha256 or ""] = bytes(content)
    assert convert(tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert name in error
    assert "huggingface says" in error
    assert "huggingface serves other bytes than it lists" in error
    assert not (tmp_path / "out" / "bf16-hf" / "manifest.json").exists()


def test_a_tag_that_moves_in_the_middle_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with modelscope(checkpoint, monkeypatch) as hub:
        files = files_at(place_of(f"modelscope://{REPO}@v1"))
        hub.repositories[REPO].tags["v1"] = hub.repositories[REPO].tags["v1"] | {"LICENSE": b"other\n"}
        with pytest.raises(CheckpointError, match="1 files are others now, the first is LICENSE"), files.tensors():
            pass


def test_a_branch_is_pinned_to_its_commit(hub: StoredElsewhere, checkpoint: Path) -> None:
    files = files_at(place_of(f"{HF}@main"))
    first = hub.repositories[REPO].branches["main"]
    commit(hub, checkpoint)
    assert str(files.root) == f"hf://{REPO}@{first}"
    assert files.find("LICENSE") == b"MIT\n"
    assert pickle.loads(pickle.dumps(files)).read("LICENSE") == b"MIT\n"


def test_a_private_repository_without_a_token(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with huggingface(checkpoint, tmp_path / "cas", monkeypatch, private=True):
        assert main(["inspect", HF]) == 3
    error = capsys.readouterr().err
    assert f"hf://{REPO}: no such repository on huggingface, or none that this token may see" in error
    assert "hf auth login" in error


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, f"Access to model {REPO} is restricted. You must have access to it and be authenticated to access it."),
        (403, f"Access to model {REPO} is restricted and you are not in the authorized list. Ask for access."),
    ],
)
def test_a_gated_repository_names_hub_repository_and_login_and_no_token(
    hub: StoredElsewhere,
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such a repository is listed for everybody, and its files are refused. Said at once, for every command."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.gated = (status, f"{said} Your token was {TOKEN}.")
    for words in (["inspect", HF], ["convert", HF, "--target", "bf16:hf", "--out", str(tmp_path / "out")]):
        hub.seen.clear()
        assert main(words) == 6
        output = capsys.readouterr()
        for part in (REPO, f"HTTP {status}", "huggingface wants an account", "hf auth login", "gated"):
            assert part in output.err
        assert "PLANTED" not in output.err + output.out
        assert hub.count("GET .*/resolve/.*") <= 1
    assert not (tmp_path / "out").exists()


def test_modelscope_names_its_own_login(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with modelscope(checkpoint, monkeypatch) as standing:
        standing.faults = [Fault("GET .*/repo", "status", 1, 403)]
        assert main(["inspect", f"modelscope://{REPO}@v1"]) == 6
    error = capsys.readouterr().err
    assert REPO in error
    assert "modelscope wants an account" in error
    assert "MODELSCOPE_API_TOKEN" in error


def test_ranges_of_the_store_come_over_one_connection(hub: StoredElsewhere) -> None:
    """A reply that is not read to its end costs a connection, and each new one several journeys to the hub and back."""
    files = files_at(place_of(HF))
    name = next(name for name in files.names() if name.endswith(".safetensors"))
    for _ in range(5):
        files.headers([name], lambda done, total: None)
    assert hub.store.count(STORE) == 5
    assert len({seen.peer for seen in hub.store.seen}) == 1


def test_a_hub_without_ranges_is_refused_at_once(hub: StoredElsewhere, capsys: pytest.CaptureFixture[str]) -> None:
    monkey = pytest.MonkeyPatch()
    monkey.setattr("hubs.ranged", lambda content, headers: __import__("loopback").Reply(content=content))
    try:
        assert main(["inspect", HF]) == 6
    finally:
        monkey.undo()
    assert "no ranges here" in capsys.readouterr().err


def test_a_file_shorter_than_its_header_says(hub: StoredElsewhere, capsys: pytest.CaptureFixture[str]) -> None:
    held = hub.repositories[REPO]
    name, entry = next((n, e) for n, e in sorted(held.commits[held.branches["main"]].items()) if "00002" in n)
    held.blobs[entry.sha256 or ""] = held.blobs[entry.sha256 or ""][:-9]
    entry.size -= 9
    assert main(["inspect", HF]) == 3
    error = capsys.readouterr().err
    assert name in error
    assert "truncated" in error


def test_the_recipe_decides_the_revision(
    hub: StoredElsewhere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "flash", "--out", str(tmp_path), "--checkpoint"]
    repo = read_recipe(find_recipe("flash")).source.repo
    assert main([*words, f"hf://{repo}@{'ab' * 20}"]) == 2
    assert "--checkpoint names abab" in capsys.readouterr().err
    assert main([*words, "s3://bucket/key"]) == 2


def test_run_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "flash", "--checkpoint", HF, "--out", str(tmp_path / "out")]) == 2
    assert f"{HF}: this command needs a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""The real modelscope_hub client against the stand-in: faults, resumption, refusals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import modelscope_hub
import pytest
from loopback import Fault
from modelscope_standin import TOKEN, ModelScopeStandIn
from publish_release import write_release

from flagrelease.chips.table import get_chip
from flagrelease.console import progress
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish import limits
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.publication import Publication, make_publication
from flagrelease.publish.records import read_records
from flagrelease.publish.upload.modelscope import ModelScope
from flagrelease.retry import Patience

REPO = "FlagRelease/DeepSeek-V4-Flash-nvidia-FlagOS"
OLD, LFS = f"/api/v1/models/{REPO}", f"/api/v1/repos/models/{REPO}"
CARD = b"---\nlicense: MIT License\n---\n# the card\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeStandIn]:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    modelscope_hub.set_default_config(modelscope_hub.HubConfig())  # the client remembers the first token it read
    server = ModelScopeStandIn()
    yield server
    server.close()


def publication_of(release: Path, private: bool = False) -> Publication:
    records = read_records(release, get_chip("nvidia"), None, allow_unvalidated=True)
    return make_publication(records, MODELSCOPE, REPO, private, {"README.md": CARD})


def publish(hub: ModelScopeStandIn, publication: Publication) -> str:
    target = ModelScope(hub.url, Patience(sleep=lambda _: None))
    with progress("publish", publication.bytes) as tracker:
        return target.publish(publication, tracker)


def expected(release: Path) -> dict[str, str]:
    held = {
        path.relative_to(release).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in release.rglob("*")
        if path.is_file()
    }
    return held | {"README.md": hashlib.sha256(CARD).hexdigest()}


def assert_published(hub: ModelScopeStandIn, publication: Publication) -> None:
    release = publication.records.release
    assert hub.files(REPO, "master") == expected(release)
    assert set(hub.repositories[REPO].tags) == {publication.version}
    assert hub.files(REPO, publication.version) == expected(release)


@pytest.mark.parametrize("private", [False, True])
def test_an_empty_hub_gets_the_whole_publication(hub: ModelScopeStandIn, release: Path, private: bool) -> None:
    publication = publication_of(release, private)
    assert publish(hub, publication) == publication.version
    assert_published(hub, publication)
    assert hub.repositories[REPO].visibility == (1 if private else 5)
    assert hub.repositories[REPO].licence == "mit"
    assert hub.received("PUT .*") == sum(path.stat().st_size for path in release.glob("*.safetensors"))
    assert not list(release.glob(".ms*"))
    assert hub.repositories[REPO].commits == 1


def test_again_sends_and_commits_nothing(hub: ModelScopeStandIn, release: Path) -> None:
    publish(hub, publication_of(release))
    hub.seen.clear()
    publish(hub, publication_of(release))
    assert hub.count("(POST|PUT) .*") == 0


def test_a_remote_that_was_emptied_is_filled_again(hub: ModelScopeStandIn, release: Path) -> None:
    publication = publication_of(release)
    publish(hub, publication)
    hub.repositories[REPO].master.clear()
    hub.repositories[REPO].tags.clear()
    hub.repositories[REPO].blobs.clear()
    publish(hub, publication)
    assert_published(hub, publication)


PLANTED = {
    "429 on create": Fault("POST /api/v1/models", "status", 2, 429, {"Retry-After": "1"}),
    "lost reply to create": Fault("POST /api/v1/models", "lost"),
    "500 on batch": Fault(f"POST {LFS}/info/lfs/objects/batch", "status", 2, 500),
    "500 on PUT": Fault("PUT /blob/.*", "status", 3, 500),
    "PUT cut": Fault("PUT /blob/.*", "cut", 2),
    "lost reply to a PUT": Fault("PUT /blob/.*", "lost"),
    "429 on commit": Fault(f"POST {LFS}/commit/.*", "status", 3, 429, {"Retry-After": "1"}),
    "commit cut": Fault(f"POST {LFS}/commit/.*", "cut"),
    "lost reply to the commit": Fault(f"POST {LFS}/commit/.*", "lost"),
    "500 on the listing": Fault(f"GET {OLD}/repo/files", "status", 2, 500),
    "listing cut": Fault(f"GET {OLD}/repo/files", "cut", 2),
    "lost reply to the tag": Fault(f"POST {OLD}/repo/tag", "lost"),
    "500 on the tag": Fault(f"POST {OLD}/repo/tag", "status", 2, 500),
    "revisions cut": Fault(f"GET {OLD}/revisions", "cut", 2),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_passes_is_waited_out(
    hub: ModelScopeStandIn, release: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = PLANTED[name]
    hub.faults = [Fault(planted.pattern, planted.kind, planted.times, planted.status, dict(planted.headers))]
    publication = publication_of(release)
    publish(hub, publication)
    assert_published(hub, publication)
    assert hub.faults[0].times == 0, "the fault was not met"
    assert "PLANTED" not in "".join(capfd.readouterr())


def test_what_does_not_pass_ends_and_the_same_command_goes_on(hub: ModelScopeStandIn, release: Path) -> None:
    publication = publication_of(release)
    hub.faults = [Fault(f"POST {LFS}/commit/.*", "status", 1000, 500)]
    with pytest.raises(NetworkError, match="Run the same command again to resume") as caught:
        publish(hub, publication)
    assert "PLANTED" not in str(caught.value)
    assert hub.files(REPO, "master") == {}
    hub.faults, sent = [], hub.received("PUT .*")
    publish(hub, publication)
    assert_published(hub, publication)
    assert hub.received("PUT .*") == sent


def test_many_files_take_several_commits_and_the_manifest_is_in_the_last(
    hub: ModelScopeStandIn, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication = publication_of(release)
    monkeypatch.setattr("flagrelease.publish.hubs.modelscope._COMMIT_BYTES", 1000)
    planned = limits.commits(publication)
    commits: list[set[str]] = []
    original = hub.commit

    def watch(*arguments: object) -> object:
        reply = original(*arguments)  # type: ignore[arg-type]
        commits.append(set(hub.repositories[REPO].master))
        return reply

    hub.routes = [(m, p, watch if f == original else f) for m, p, f in hub.routes]  # type: ignore[misc]
    publish(hub, publication)
    assert_published(hub, publication)
    assert len(commits) == planned > 2
    assert all("manifest.json" not in held and "README.md" not in held for held in commits[:-2])
    assert "manifest.json" in commits[-1] - commits[-2]


def test_a_publication_cut_between_two_commits_goes_on(
    hub: ModelScopeStandIn, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flagrelease.publish.hubs.modelscope._COMMIT_BYTES", 1000)
    publication = publication_of(release)
    publish(hub, publication)
    repo = hub.repositories[REPO]
    repo.tags.clear()
    for last in ("manifest.json", "README.md"):
        del repo.master[last]
    publish(hub, publication)
    assert_published(hub, publication)


def test_a_new_version_removes_what_it_does_not_have(hub: ModelScopeStandIn, tmp_path: Path) -> None:
    publish(hub, publication_of(write_release(tmp_path / "old", ranks=3)))
    new = write_release(tmp_path / "new", ranks=2)
    publish(hub, publication_of(new))
    assert hub.files(REPO, "master") == expected(new)
    assert len(hub.repositories[REPO].tags) == 2


def test_the_first_version_again_is_on_master_again(hub: ModelScopeStandIn, tmp_path: Path) -> None:
    """v1, v2, v1: before, master kept v2 and the command said "published and checked"."""
    first = write_release(tmp_path / "v1", ranks=3)
    tag = publish(hub, publication_of(first))
    publish(hub, publication_of(write_release(tmp_path / "v2", size=1 << 19)))
    hub.seen.clear()
    assert publish(hub, publication_of(first)) == tag
    assert hub.files(REPO, "master") == expected(first)
    assert len(hub.repositories[REPO].tags) == 2
    assert hub.received("PUT .*") == 0


@pytest.mark.parametrize("change", ["added", "changed", "removed"])
def test_a_change_by_another_in_between_ends_it_and_stays(hub: ModelScopeStandIn, tmp_path: Path, change: str) -> None:
    """Before, the publication was planned again over what somebody else had put on master."""
    publish(hub, publication_of(write_release(tmp_path / "old", ranks=3)))
    publication = publication_of(write_release(tmp_path / "new", size=1 << 19))
    repo = hub.repositories[REPO]

    def intrude() -> None:
        if change == "added":
            repo.master["NOTES.md"] = b"theirs"
        elif change == "changed":
            repo.master["README.md"] = b"theirs"
        else:
            del repo.master["README.md"]

    hub.faults = [Fault("PUT /blob/.*", "call", hook=intrude)]
    with pytest.raises(VerificationError, match=r"somebody else changed '(NOTES|README)\.md' on master"):
        publish(hub, publication)
    kept = None if change == "removed" else b"theirs"
    assert repo.master.get("NOTES.md" if change == "added" else "README.md") == kept
    assert publication.version not in repo.tags
    hub.seen.clear()
    publish(hub, publication)
    assert hub.received("PUT .*") == 0
    assert hub.files(REPO, "master") == expected(tmp_path / "new")


def test_wrong_visibility_and_licence_are_refused(hub: ModelScopeStandIn, release: Path) -> None:
    publish(hub, publication_of(release))
    with pytest.raises(UsageError, match="is public; this publication is private"):
        publish(hub, publication_of(release, private=True))
    hub.repositories[REPO].licence = "Apache License 2.0"
    with pytest.raises(UsageError, match="has licence 'Apache License 2"):
        publish(hub, publication_of(release))


def test_a_repository_of_something_else_is_left_alone(hub: ModelScopeStandIn, release: Path) -> None:
    publication = publication_of(release)
    publish(hub, publication)
    repo = hub.repositories[REPO]
    repo.tags.clear()
    repo.master = {"pytorch_model.bin": b"somebody's"}
    with pytest.raises(UsageError, match=r"master holds 'pytorch_model\.bin'"):
        publish(hub, publication)
    assert repo.master == {"pytorch_model.bin": b"somebody's"}


@pytest.mark.parametrize("damage", ["changed", "missing", "extra"])
def test_a_tag_that_holds_something_else_is_found_and_not_moved(
    hub: ModelScopeStandIn, release: Path, damage: str
) -> None:
    publication = publication_of(release)
    publish(hub, publication)
    tagged = hub.repositories[REPO].tags[publication.version]
    if damage == "missing":
        del tagged["LICENSE"]
    else:
        tagged["LICENSE" if damage == "changed" else "more.txt"] = b"MIT Licence\n"
    before = dict(tagged)
    with pytest.raises(VerificationError, match="a tag is never moved"):
        publish(hub, publication)
    assert hub.repositories[REPO].tags[publication.version] == before


def test_a_changed_shard_is_found_before_anything_is_committed(hub: ModelScopeStandIn, release: Path) -> None:
    publication = publication_of(release)
    path = release / "model1-mp8.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises((VerificationError, NetworkError), match=r"model1-mp8\.safetensors"):
        publish(hub, publication)
    assert hub.repositories[REPO].commits == 0


def test_no_token_is_said_without_a_repository(
    hub: ModelScopeStandIn, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-wrong-PLANTED")
    modelscope_hub.set_default_config(modelscope_hub.HubConfig())
    with pytest.raises(NetworkError, match="401") as caught:
        publish(hub, publication_of(release))
    assert "PLANTED" not in str(caught.value)
    assert not hub.repositories

"""The real huggingface_hub client against the stand-in, Xet off: faults, resumption, refusals."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_standin import TOKEN, Entry, HuggingFaceStandIn, regular
from loopback import Fault
from publish_release import write_release

from flagrelease.chips.table import get_chip
from flagrelease.console import progress
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.publication import Publication, make_publication
from flagrelease.publish.reading.huggingface import HuggingFaceClient
from flagrelease.publish.records import read_records
from flagrelease.publish.upload.huggingface import HuggingFace
from flagrelease.retry import Patience

REPO = "FlagRelease/DeepSeek-V4-Flash-nvidia-FlagOS"
API = f"/api/models/{REPO}"
# The client's own, of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CARD = b"---\nlicense: mit\n---\n# the card\n"


@pytest.fixture(params=["basic", "multipart"])
def hub(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HuggingFaceStandIn]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    server = HuggingFaceStandIn(tmp_path / "cas", multipart=request.param == "multipart")
    yield server
    server.close()


class Waits(list[float]):
    """Waits instead of sleeping."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def publication_of(
    release: Path, chip: str = "nvidia", repo: str = REPO, private: bool = False, siblings: tuple[str, ...] = ()
) -> Publication:
    records = read_records(release, get_chip(chip), None, allow_unvalidated=True)
    return make_publication(records, HUGGING_FACE, repo, private, {"README.md": CARD}, siblings)


def publish(hub: HuggingFaceStandIn, publication: Publication, waits: Waits | None = None) -> str:
    target = HuggingFace(hub.url, Patience(sleep=waits if waits is not None else Waits()))
    with progress("publish", publication.bytes) as tracker:
        return target.publish(publication, tracker)


def expected(publication: Publication) -> dict[str, str]:
    """From the bytes on the disk, not from the manifest."""
    release = publication.records.release
    held = {
        path.relative_to(release).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in release.rglob("*")
        if path.is_file()
    }
    return held | {"README.md": hashlib.sha256(CARD).hexdigest()}


def assert_published(hub: HuggingFaceStandIn, publication: Publication) -> None:
    repo = hub.repositories[publication.repo]
    assert hub.files(publication.repo, "main") == expected(publication)
    assert repo.tags == {publication.version: repo.branches["main"]}
    assert set(repo.branches) == {"main"}
    assert repo.private == publication.private
    # main went from empty to whole in one step
    assert [branch for branch, _ in repo.history].count("main") == 2


@pytest.mark.parametrize("private", [False, True])
def test_an_empty_hub_gets_the_whole_publication(hub: HuggingFaceStandIn, release: Path, private: bool) -> None:
    publication = publication_of(release, private=private)
    commit = publish(hub, publication)
    assert_published(hub, publication)
    assert hub.repositories[REPO].branches["main"] == commit
    shards = sum(path.stat().st_size for path in release.glob("*.safetensors"))
    assert hub.received(r"PUT /blob/.*") == shards
    assert not any(seen.authorised for seen in hub.seen if seen.path.startswith("/blob/") and seen.method == "PUT")


def test_again_sends_and_commits_nothing(hub: HuggingFaceStandIn, release: Path) -> None:
    publication = publication_of(release)
    first = publish(hub, publication)
    before = len(hub.repositories[REPO].history)
    hub.seen.clear()
    assert publish(hub, publication) == first
    assert hub.count(r"(PUT|DELETE) .*") == 0
    assert hub.count(r"POST .*(commit|tag|branch|preupload|create).*") == 0
    assert len(hub.repositories[REPO].history) == before


def test_a_new_version_takes_the_place_of_the_old_and_sends_what_is_new(
    hub: HuggingFaceStandIn, tmp_path: Path
) -> None:
    old = publication_of(write_release(tmp_path / "old", ranks=3))
    publish(hub, old)
    old_commit = hub.repositories[REPO].branches["main"]
    new = publication_of(write_release(tmp_path / "new", ranks=2))
    hub.seen.clear()
    publish(hub, new)
    assert hub.files(REPO, "main") == expected(new)  # the third rank is gone
    assert hub.received(r"PUT /blob/.*") == 0
    assert hub.repositories[REPO].tags == {
        old.version: old_commit,
        new.version: hub.repositories[REPO].branches["main"],
    }


PLANTED = {
    "rate limit on create": Fault("POST /api/repos/create", "status", 2, 429, {"RateLimit": '"api";r=0;t=55'}),
    "lost reply to create": Fault("POST /api/repos/create", "lost"),
    "500 on preupload": Fault(f"POST {API}/preupload/.*", "status", 8, 500),
    "500 on PUT": Fault("PUT /blob/.*", "status", 3, 500),
    "503 on PUT, longer than the client waits": Fault("PUT /blob/.*", "status", 9, 503),
    "connection cut in a PUT": Fault("PUT /blob/.*", "cut", 2),
    "reply to a PUT lost": Fault("PUT /blob/.*", "lost"),
    "500 on batch": Fault("POST .*/objects/batch", "status", 2, 502),
    "500 on verify": Fault("POST /blob/.*/verify", "status", 2, 500),
    "rate limit on the branch's commit": Fault(f"POST {API}/commit/publish.*", "status", 3, 429, {"Retry-After": "7"}),
    "lost reply to the branch's commit": Fault(f"POST {API}/commit/publish.*", "lost"),
    "504 on main's commit": Fault(f"POST {API}/commit/main", "status", 2, 504),
    "main's commit cut": Fault(f"POST {API}/commit/main", "cut"),
    "lost reply to main's commit": Fault(f"POST {API}/commit/main", "lost"),
    "lost reply to the branch": Fault(f"POST {API}/branch/.*", "lost"),
    "lost reply to the tag": Fault(f"POST {API}/tag/.*", "lost"),
    "500 on the tag": Fault(f"POST {API}/tag/.*", "status", 1, 500),
    "500 on the tree": Fault(f"GET {API}/tree/.*", "status", 3, 500),
    "tree cut": Fault(f"GET {API}/tree/.*", "cut", 2),
    "refs cut": Fault(f"GET {API}/refs", "cut", 2),
    "lost reply to the branch's removal": Fault(f"DELETE {API}/branch/.*", "lost"),
    "paths-info 429": Fault(f"POST {API}/paths-info/.*", "status", 1, 429, {"RateLimit": '"api";r=0;t=3'}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_passes_is_waited_out(hub: HuggingFaceStandIn, release: Path, name: str) -> None:
    planted = PLANTED[name]
    hub.faults = [Fault(planted.pattern, planted.kind, planted.times, planted.status, dict(planted.headers))]
    publication = publication_of(release)
    publish(hub, publication, Waits())
    assert_published(hub, publication)
    assert hub.faults[0].times == 0, "the fault was not met"
    assert [branch for branch, _ in hub.repositories[REPO].history].count("main") == 2


def test_the_servers_wait_is_kept(hub: HuggingFaceStandIn, release: Path) -> None:
    hub.faults = [
        Fault("POST /api/repos/create", "status", 1, 429, {"RateLimit": '"api";r=0;t=55'}),
        Fault(f"POST {API}/commit/main", "status", 1, 429, {"Retry-After": "9"}),
        Fault(f"POST {API}/tag/.*", "status", 2, 500),
    ]
    waits = Waits()
    publish(hub, publication_of(release), waits)
    assert waits == [55.0, 9.0, 1.0, 2.0]


def test_what_does_not_pass_ends_and_the_same_command_goes_on(hub: HuggingFaceStandIn, release: Path) -> None:
    publication = publication_of(release)
    hub.faults = [Fault(f"POST {API}/commit/main", "status", 8, 500)]
    with pytest.raises(NetworkError, match=r"commit to main .* HTTP 500.*tried 8 times. Run the same command again"):
        publish(hub, publication)
    assert hub.files(REPO, "main") == {}
    assert hub.repositories[REPO].tags == {}
    sent = hub.received(r"PUT /blob/.*")
    publish(hub, publication)
    assert_published(hub, publication)
    assert hub.received(r"PUT /blob/.*") == sent


def test_a_server_that_asks_for_too_long_is_given_up_on(hub: HuggingFaceStandIn, release: Path) -> None:
    hub.faults = [Fault("POST /api/repos/create", "status", 1, 429, {"Retry-After": "86400"})]
    with pytest.raises(NetworkError, match="asked to wait 86400 s"):
        publish(hub, publication_of(release))


def test_no_permission_is_said_at_once(hub: HuggingFaceStandIn, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTEDbutWRONGplantedBUTwrong")
    waits = Waits()
    with pytest.raises(NetworkError, match="401") as caught:
        publish(hub, publication_of(release), waits)
    assert "PLANTED" not in str(caught.value)
    assert not waits


def test_nobody_listening_is_a_network_error(hub: HuggingFaceStandIn, release: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(NetworkError, match="tried 3 times"), progress("p", 0) as tracker:
            HuggingFace(url, Patience(3, sleep=Waits())).publish(publication_of(release), tracker)


def test_wrong_visibility_and_licence_are_refused(hub: HuggingFaceStandIn, release: Path) -> None:
    publish(hub, publication_of(release))
    with pytest.raises(UsageError, match="is public; this publication is private"):
        publish(hub, publication_of(release, private=True))
    repo = hub.repositories[REPO]
    tree = dict(repo.tree("main") or {})
    repo.commit("main", tree | {"README.md": regular(b"---\nlicense: apache-2.0\n---\n")})
    with pytest.raises(UsageError, match=r"has licence .apache-2\.0.; this is .mit."):
        publish(hub, publication_of(release))


def test_a_repository_of_something_else_is_left_alone(hub: HuggingFaceStandIn, release: Path) -> None:
    publication = publication_of(release)
    publish(hub, publication)
    repo = hub.repositories[REPO]
    repo.tags.clear()
    head = repo.commit("main", {"pytorch_model.bin": regular(b"somebody's")})
    with pytest.raises(UsageError, match="nothing that flagrelease published"):
        publish(hub, publication)
    assert repo.branches["main"] == head


@pytest.mark.parametrize("held", ["a web app's", "another model's"])
def test_another_manifest_is_left_alone(hub: HuggingFaceStandIn, release: Path, held: str) -> None:
    publication = publication_of(release)
    publish(hub, publication)
    repo = hub.repositories[REPO]
    repo.tags.clear()
    ours = (release / "manifest.json").read_bytes()
    others = ours.replace(b'"model": "DeepSeek-V4-Flash"', b'"model": "DeepSeek-V4-Pro"')
    assert others != ours
    content = b'{"name": "a web app"}' if held == "a web app's" else others
    head = repo.commit("main", {"manifest.json": regular(content), "pytorch_model.bin": regular(b"somebody's")})
    with pytest.raises(UsageError, match="name another repository"):
        publish(hub, publication)
    assert repo.branches["main"] == head


def test_a_tag_is_never_moved(hub: HuggingFaceStandIn, release: Path) -> None:
    publication = publication_of(release)
    publish(hub, publication)
    repo = hub.repositories[REPO]
    tree = dict(repo.tree("main") or {})
    wrong = repo.commit("main", tree | {"LICENSE": regular(b"changed")})
    repo.tags[publication.version] = wrong
    with pytest.raises(VerificationError, match="changed: LICENSE; a tag is never moved"):
        publish(hub, publication)
    assert repo.tags[publication.version] == wrong


def test_a_tag_set_by_another_in_between_is_not_moved(hub: HuggingFaceStandIn, release: Path) -> None:
    publication = publication_of(release)

    def intrude() -> None:
        repo = hub.repositories[REPO]
        repo.tags[publication.version] = next(iter(repo.commits))

    hub.faults = [Fault(f"POST {API}/tag/.*", "call", hook=intrude)]
    with pytest.raises(VerificationError, match="a tag is never moved"):
        publish(hub, publication)


@pytest.mark.parametrize("moment", [f"POST {API}/commit/main", "PUT /blob/.*"], ids=["at the commit", "while sending"])
def test_a_commit_by_another_in_between_ends_it_and_stays(hub: HuggingFaceStandIn, tmp_path: Path, moment: str) -> None:
    """Over an earlier publication; the next run, which somebody decided on, goes on where this one was."""
    old = publication_of(write_release(tmp_path / "old", ranks=3))
    publish(hub, old)
    publication = publication_of(write_release(tmp_path / "new", size=1 << 19))
    repo, theirs = hub.repositories[REPO], []

    def intrude() -> None:
        theirs.append(repo.commit("main", dict(repo.tree("main") or {}) | {"NOTES.md": regular(b"theirs")}))

    hub.faults = [Fault(moment, "call", hook=intrude)]
    with pytest.raises(VerificationError, match=r"somebody else's commit [0-9a-f]{40} came to main") as caught:
        publish(hub, publication)
    assert theirs[0] in str(caught.value)
    assert repo.branches["main"] == theirs[0]
    assert hub.files(REPO, f"publish-{publication.digest[:12]}") == expected(publication)
    assert publication.version not in repo.tags
    hub.seen.clear()
    publish(hub, publication)
    assert hub.received(r"PUT /blob/.*") == 0
    assert hub.files(REPO, "main") == expected(publication)
    assert set(repo.branches) == {"main"}


def test_a_commit_by_another_after_ours_ends_it_and_stays(hub: HuggingFaceStandIn, release: Path) -> None:
    """Before, this was called published although main held something else."""
    publication, theirs = publication_of(release), []
    repo_of = hub.repositories

    def intrude() -> None:
        theirs.append(repo_of[REPO].commit("main", dict(repo_of[REPO].tree("main") or {}) | {"N.md": regular(b"x")}))

    hub.faults = [Fault(f"POST {API}/tag/.*", "call", hook=intrude)]
    with pytest.raises(VerificationError, match="came to main after this publication's commit") as caught:
        publish(hub, publication)
    assert theirs[0] in str(caught.value)
    assert repo_of[REPO].branches["main"] == theirs[0]
    assert hub.files(REPO, publication.version) == expected(publication)


def test_the_first_version_again_is_on_main_again(
    hub: HuggingFaceStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """v1, v2, v1: before, main kept v2 and the command said "published and checked"."""
    first = publication_of(write_release(tmp_path / "v1", ranks=3))
    commit = publish(hub, first)
    second = publication_of(write_release(tmp_path / "v2", size=1 << 19))
    publish(hub, second)
    tags = dict(hub.repositories[REPO].tags)
    hub.seen.clear()
    capsys.readouterr()
    back = publish(hub, first)
    assert hub.files(REPO, "main") == expected(first)
    assert hub.repositories[REPO].branches == {"main": back}
    assert hub.repositories[REPO].tags == tags
    assert tags[first.version] == commit
    assert hub.received(r"PUT /blob/.*") == 0
    assert f"main gets {first.version} back from its tag" in capsys.readouterr().err
    assert publish(hub, first) == back  # and once more is nothing


def test_a_version_that_is_asked_for_again_does_not_replace_somebody_elses_files(
    hub: HuggingFaceStandIn, release: Path
) -> None:
    publication = publication_of(release)
    publish(hub, publication)
    head = hub.repositories[REPO].commit("main", {"pytorch_model.bin": regular(b"somebody's")})
    with pytest.raises(UsageError, match="nothing that flagrelease published"):
        publish(hub, publication)
    assert hub.repositories[REPO].branches["main"] == head


@pytest.mark.parametrize("place", ["in the release", "on the hub"])
def test_a_gitignore_leaves_nothing_out(hub: HuggingFaceStandIn, tmp_path: Path, place: str) -> None:
    """The client drops files that a .gitignore names without a word; before, that showed when all had been sent."""
    content = b"*.safetensors\nLICENSE\n"
    more = {".gitignore": content} if place == "in the release" else {}
    publication = publication_of(write_release(tmp_path / "r", more=more))
    if place == "on the hub":
        publish(hub, publication_of(write_release(tmp_path / "old", more={".gitignore": content})))
        hub.repositories[REPO].blobs.clear()
    publish(hub, publication)
    assert hub.files(REPO, "main") == expected(publication)


def test_a_changed_shard_is_found_before_anything_is_committed(hub: HuggingFaceStandIn, release: Path) -> None:
    publication = publication_of(release)
    path = release / "model1-mp8.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"model1-mp8\.safetensors: not what the manifest says"):
        publish(hub, publication)
    assert hub.files(REPO, "main") == {}
    assert len(hub.repositories[REPO].history) == 1


def test_a_hub_that_keeps_something_else_is_found(
    hub: HuggingFaceStandIn, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = hub._described

    def forgetful(path: str, entry: Entry) -> dict[str, object]:
        return original(path, entry) | ({"size": entry.size - 1} if path == "config.json" else {})

    monkeypatch.setattr(hub, "_described", forgetful)
    with pytest.raises(VerificationError, match=r"does not hold what it was sent: changed: config\.json"):
        publish(hub, publication_of(release))
    assert hub.files(REPO, "main") == {}
    assert hub.repositories[REPO].tags == {}


def test_files_of_another_chips_repository_are_copied_on_the_server(hub: HuggingFaceStandIn, tmp_path: Path) -> None:
    first = publication_of(write_release(tmp_path / "a"))
    publish(hub, first)
    hub.seen.clear()
    mthreads = "FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS"
    other = publication_of(tmp_path / "a", "mthreads", mthreads, siblings=(REPO, "FlagRelease/absent"))
    publish(hub, other)
    assert hub.files(other.repo, "main") == expected(other)
    assert hub.received(r"PUT /blob/.*") == 0
    assert hub.count(f"POST {API}/lfs-files/duplicate") == 1


@pytest.mark.parametrize("refusal", ["in the reply", "as a status"])
def test_files_that_the_hub_does_not_copy_are_sent(
    hub: HuggingFaceStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: str
) -> None:
    publish(hub, publication_of(write_release(tmp_path / "a")))
    hub.seen.clear()
    hub.other_region = refusal == "in the reply"
    if refusal == "as a status":
        hub.faults = [Fault(f"POST {API}/lfs-files/duplicate", "status", 1, 400)]
    mthreads = "FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS"
    other = publication_of(tmp_path / "a", "mthreads", mthreads, siblings=(REPO,))
    publish(hub, other)
    assert_published(hub, other)
    assert hub.received(r"PUT /blob/.*") == sum(path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors"))
    assert "the files are sent instead" in capsys.readouterr().err


def test_a_copy_that_fails_for_a_moment_is_tried_again(hub: HuggingFaceStandIn, tmp_path: Path) -> None:
    publish(hub, publication_of(write_release(tmp_path / "a")))
    hub.seen.clear()
    hub.faults = [Fault(f"POST {API}/lfs-files/duplicate", "status", 1, 503)]
    mthreads = "FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS"
    other = publication_of(tmp_path / "a", "mthreads", mthreads, siblings=(REPO,))
    publish(hub, other)
    assert_published(hub, other)
    assert hub.received(r"PUT /blob/.*") == 0


XET = "{} error: Request error: HTTP status {} error ({}), domain: https://cas/x?token=PLANTED"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ConnectionError(XET.format("Server", "server", "503 Service Unavailable")), 3),
        (ConnectionError("Network error: connection reset by peer"), 3),
        (ConnectionError(XET.format("Network", "client", "429 Too Many Requests")), 3),
        (ConnectionError(XET.format("Network", "client", "403 Forbidden")), 1),
        (PermissionError("Authentication error: token=PLANTED expired"), 1),
    ],
    ids=["503", "reset", "429", "403", "token"],
)
def test_what_xet_raises(error: OSError, tries: int) -> None:
    """Its client says everything by built-in errors; these texts are of hf_xet 1.8 against a server with faults."""
    called: list[int] = []

    def fail() -> None:
        called.append(1)
        raise error

    waits = Waits()
    with pytest.raises(NetworkError) as caught:
        HuggingFaceClient("http://127.0.0.1:9", Patience(3, sleep=waits)).attempt("send x", fail)
    assert (len(called), len(waits)) == (tries, tries - 1)
    assert "PLANTED" not in str(caught.value)


def test_a_local_file_that_may_not_be_read_is_no_network_error() -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied", "model0-mp8.safetensors")

    with pytest.raises(PermissionError, match="model0"):
        HuggingFaceClient("http://127.0.0.1:9", Patience(3, sleep=Waits())).attempt("send x", fail)

"""Places on hubs, with the real clients against the stand-ins: what `convert --disk` leaves there and when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modelscope_hub
import modelscope_standin
import pytest
from disk_places import run_inside
from harness import contents, plan_of, run_plan
from huggingface_standin import TOKEN, HuggingFaceStandIn, lfs, regular
from loopback import Fault
from modelscope_standin import ModelScopeStandIn

from flagrelease.convert.planning.plan import Plan
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.publish.online import verify_online
from flagrelease.publish.reading.remote import parse_address
from flagrelease.publish.staging.huggingface import HuggingFacePlace
from flagrelease.publish.staging.modelscope import ModelScopePlace
from flagrelease.publish.staging.place import Place, Staged
from flagrelease.publish.staging.places import places_on_a_hub
from flagrelease.publish.summary import online_text
from flagrelease.publish.upload.huggingface import HuggingFace
from flagrelease.publish.upload.modelscope import ModelScope
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.retry import Patience

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
REPO = "FlagRelease/Tiny"
MODEL_SCOPE_REPO = f"{REPO}-unvalidated"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    write_checkpoint(folder, tiny_config(num_hidden_layers=1, num_nextn_predict_layers=0, compress_ratios=[4]))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# the source's card\n")
    return plan_of(folder, "native:hf", max_file_bytes=700_000)


@pytest.fixture(scope="module")
def at_once(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Path -> SHA-256 of a conversion with room for all."""
    out = tmp_path_factory.mktemp("at-once")
    run_plan(plan, out)
    return {path: hashlib.sha256(data).hexdigest() for path, data in contents(out / "native-hf").items()}


@pytest.fixture
def huggingface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceStandIn]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    server = HuggingFaceStandIn(tmp_path / "cas")
    yield server
    server.close()


@pytest.fixture
def modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeStandIn]:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", modelscope_standin.TOKEN)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    modelscope_hub.set_default_config(modelscope_hub.HubConfig())
    server = ModelScopeStandIn()
    yield server
    server.close()


def staged(plan: Plan) -> Staged:
    (release,) = plan.releases
    names = frozenset(file.name for file in release.files)
    return Staged(release.target.folder, release.digest, names, licence="MIT")


def place_on(hub: HuggingFaceStandIn | ModelScopeStandIn, plan: Plan, private: bool = False) -> Place:
    patience = Patience(sleep=lambda _: None)
    if isinstance(hub, HuggingFaceStandIn):
        return HuggingFacePlace(HuggingFace(hub.url, patience), staged(plan), REPO, private)
    return ModelScopePlace(ModelScope(hub.url, patience), staged(plan), MODEL_SCOPE_REPO)


def stage(hub: HuggingFaceStandIn | ModelScopeStandIn, plan: Plan, out: Path) -> None:
    """Under the least budget: every file is handed over before the next is begun."""
    from flagrelease.convert.planning.passes import plan_passes

    least = plan_passes(plan, 10**15).least
    assert all(len(one.files) == 1 for one in plan_passes(plan, least).passes)
    run_inside(plan, least, out, {"native-hf": place_on(hub, plan)})


def branch_of(plan: Plan) -> str:
    return f"convert-native-hf-{plan.releases[0].digest[:12]}"


def test_a_branch_of_huggingface_is_whole_when_it_has_a_manifest(
    huggingface: HuggingFaceStandIn, plan: Plan, at_once: dict[str, str], tmp_path: Path
) -> None:
    stage(huggingface, plan, tmp_path / "out")
    repo = huggingface.repositories[REPO]
    assert huggingface.files(REPO, branch_of(plan)) == at_once
    assert huggingface.files(REPO, "main") == {}
    assert repo.tags == {}
    assert not repo.private
    assert place_on(huggingface, plan).address == f"hf://{REPO}@{branch_of(plan)}"
    for branch, commit in repo.history:
        tree = set(repo.commits[commit]) - {".gitattributes"}
        assert branch == "main" or MANIFEST_NAME not in tree or tree == set(at_once)
    assert len(repo.history) == 1 + len(plan.files) + 1
    sent = huggingface.received(r"PUT /blob/.*")
    stage(huggingface, plan, tmp_path / "out")  # again: asked, and nothing is sent or committed
    assert huggingface.received(r"PUT /blob/.*") == sent == sum(file.size for file in plan.files)
    assert len(repo.history) == 1 + len(plan.files) + 1


def test_a_private_repository_of_modelscope_is_whole_when_it_has_a_manifest(
    modelscope: ModelScopeStandIn, plan: Plan, at_once: dict[str, str], tmp_path: Path
) -> None:
    modelscope.faults = [
        Fault("POST .*/commit/master", "call", 99, hook=lambda: trees.append(set(listed()))),
    ]
    trees: list[set[str]] = []

    def listed() -> dict[str, str]:
        return modelscope.files(MODEL_SCOPE_REPO, "master")

    stage(modelscope, plan, tmp_path / "out")
    assert listed() == at_once
    repo = modelscope.repositories[MODEL_SCOPE_REPO]
    assert repo.visibility == 1  # private
    assert repo.tags == {}
    assert not any(MANIFEST_NAME in tree for tree in trees)
    assert len(trees) == len(plan.files) + 1
    sent = modelscope.received(r"PUT /blob/.*")
    stage(modelscope, plan, tmp_path / "out")
    assert modelscope.received(r"PUT /blob/.*") == sent
    assert len(trees) == len(plan.files) + 1


API = f"/api/models/{REPO}"
PLANTED = {
    "cut in a PUT": Fault("PUT /blob/.*", "cut", 2),
    "reply to a PUT lost": Fault("PUT /blob/.*", "lost"),
    "500 on PUT": Fault("PUT /blob/.*", "status", 3, 500),
    "429 on a commit": Fault(f"POST {API}/commit/.*", "status", 2, 429, {"Retry-After": "7"}),
    "lost reply to a commit": Fault(f"POST {API}/commit/.*", "lost", 3),
    "lost reply to the branch": Fault(f"POST {API}/branch/.*", "lost"),
    "500 on the tree": Fault(f"GET {API}/tree/.*", "status", 3, 500),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_passes_is_waited_out(
    huggingface: HuggingFaceStandIn, plan: Plan, at_once: dict[str, str], tmp_path: Path, name: str
) -> None:
    planted = PLANTED[name]
    fault = Fault(planted.pattern, planted.kind, planted.times, planted.status, planted.headers)
    huggingface.faults = [fault]
    stage(huggingface, plan, tmp_path / "out")
    assert huggingface.files(REPO, branch_of(plan)) == at_once
    assert fault.times == 0


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
def test_what_does_not_pass_ends_and_the_same_command_resumes(
    kind: str, plan: Plan, at_once: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    hub = request.getfixturevalue(kind)
    after = [Fault("PUT /blob/.*", "call", 2), Fault("PUT /blob/.*", "status", 99, 500)]
    hub.faults = after
    with pytest.raises(NetworkError, match="Run the same command again"):
        stage(hub, plan, tmp_path / "out")
    hub.faults = []
    before = hub.received(r"PUT /blob/.*")
    hub.seen.clear()
    stage(hub, plan, tmp_path / "out")
    found = hub.files(REPO, branch_of(plan)) if kind == "huggingface" else hub.files(MODEL_SCOPE_REPO, "master")
    assert found == at_once
    largest = max(file.size for file in plan.files)
    total = sum(file.size for file in plan.files)
    assert before > 0
    assert hub.received(r"PUT /blob/.*") <= total - 2 * min(file.size for file in plan.files) + largest


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
def test_a_file_that_the_hub_lost_or_has_wrong_is_made_and_sent_again(
    kind: str, plan: Plan, at_once: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    hub = request.getfixturevalue(kind)
    stage(hub, plan, tmp_path / "out")
    first, second = plan.files[0].name, plan.files[1].name
    if kind == "huggingface":
        repo = hub.repositories[REPO]
        tree: dict[str, Any] = dict(repo.tree(branch_of(plan)) or {})
        del tree[first]
        tree[second] = lfs(tree[second].size, "0" * 64)
        repo.commit(branch_of(plan), tree)
    else:
        master = hub.repositories[MODEL_SCOPE_REPO].master
        del master[first]
        master[second] = master[second][:-1] + b"?"
    stage(hub, plan, tmp_path / "out")
    found = hub.files(REPO, branch_of(plan)) if kind == "huggingface" else hub.files(MODEL_SCOPE_REPO, "master")
    assert found == at_once


def test_a_branch_begun_at_an_earlier_publication_does_not_look_whole(
    huggingface: HuggingFaceStandIn, plan: Plan, at_once: dict[str, str], tmp_path: Path
) -> None:
    """main holds a whole release of before; its manifest leaves the branch before the first file comes."""
    huggingface.create(
        None, None, b'{"organization": "FlagRelease", "name": "Tiny"}', {"Authorization": f"Bearer {TOKEN}"}
    )
    repo = huggingface.repositories[REPO]
    old = {"README.md": regular(b"---\nlicense: mit\n---\n"), "manifest.json": regular(b"{}"), "old.txt": regular(b"x")}
    main = repo.commit("main", old)
    stage(huggingface, plan, tmp_path / "out")
    assert huggingface.files(REPO, branch_of(plan)) == at_once
    assert repo.branches["main"] == main
    first = next(commit for branch, commit in repo.history if branch == branch_of(plan))
    assert set(repo.commits[first]) <= {".gitattributes"}


def test_somebody_elses_repository_is_left_alone(huggingface: HuggingFaceStandIn, plan: Plan, tmp_path: Path) -> None:
    huggingface.create(
        None, None, b'{"organization": "FlagRelease", "name": "Tiny"}', {"Authorization": f"Bearer {TOKEN}"}
    )
    huggingface.repositories[REPO].commit("main", {"pytorch_model.bin": regular(b"somebody's")})
    with pytest.raises(UsageError, match="nothing that flagrelease published"):
        stage(huggingface, plan, tmp_path / "out")
    assert set(huggingface.repositories[REPO].branches) == {"main"}


def test_a_hub_that_lists_something_else_than_it_was_sent_is_not_believed(
    huggingface: HuggingFaceStandIn, plan: Plan, tmp_path: Path
) -> None:
    """The file stays here: nothing is deleted that the hub does not list with its digest."""
    described = huggingface._described

    def wrong(path: str, entry: Any) -> dict[str, Any]:
        found = described(path, entry)
        return found | ({"lfs": found["lfs"] | {"oid": "0" * 64}} if "lfs" in found else {})

    huggingface._described = wrong  # type: ignore[method-assign]
    with pytest.raises(VerificationError, match="does not hold what it was sent: model-00001"):
        stage(huggingface, plan, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.safetensors")] == [plan.files[0].name]


def test_which_repository_and_which_hub(plan: Plan, huggingface: HuggingFaceStandIn) -> None:
    one = staged(plan)
    with pytest.raises(UsageError, match="no recipe says the repository of native-hf; name one with --repo"):
        places_on_a_hub("hf", [one], None, False, huggingface.url)
    with pytest.raises(UsageError, match="no such hub; there are hf and modelscope"):
        places_on_a_hub("ftp", [one], REPO, False)
    with pytest.raises(UsageError, match="it holds one release"):
        places_on_a_hub("modelscope", [one, one], REPO, False)
    places = places_on_a_hub("hf", [one], REPO, False, huggingface.url)
    assert places["native-hf"].address == f"hf://{REPO}@{branch_of(plan)}"


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
def test_verify_checks_what_is_staged_on_the_hub(
    kind: str, plan: Plan, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """By its manifest, since the files are gone here; what the hub lost, changed or gained is found."""
    hub = request.getfixturevalue(kind)
    stage(hub, plan, tmp_path / "out")
    patience = Patience(sleep=lambda _: None)
    client = HuggingFace(hub.url, patience) if kind == "huggingface" else ModelScope(hub.url, patience)
    address = parse_address(place_on(hub, plan).address)
    assert address is not None
    report = verify_online(client, address, sample_bytes=300_000)
    assert report.problems == ()
    assert report.tensors > 0
    assert not report.published
    assert report.version is None
    assert "NOT PUBLISHED: nobody has validated it" in online_text(report)
    lost, changed = plan.files[0].name, plan.files[1].name
    if kind == "huggingface":
        tree = hub.repositories[REPO].tree(branch_of(plan))
        del tree[lost]
        tree[changed] = lfs(tree[changed].size, "0" * 64)
        tree["more.txt"] = regular(b"x")
    else:
        tree = hub.repositories[MODEL_SCOPE_REPO].master
        del tree[lost]
        tree[changed] = tree[changed][:-1] + b"?"
        tree["more.txt"] = b"x"
    found = verify_online(client, address).problems
    assert found == (f"{lost}: lost", "more.txt: not of this release", f"{changed}: changed")
    del tree[MANIFEST_NAME]
    with pytest.raises(VerificationError, match=r"no manifest.json yet: the conversion that writes it has not"):
        verify_online(client, address)

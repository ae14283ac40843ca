"""`publish` as a whole: nothing without --yes, the right repository, the plan in numbers, a folder at the end."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import modelscope_hub
import modelscope_standin
import pytest
from huggingface_standin import TOKEN, HuggingFaceStandIn, lfs, regular
from publish_release import report_for, write_release, write_report

from flagrelease.cli import main
from flagrelease.console import progress
from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.folder import list_folder
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.listing import Difference, compare
from flagrelease.publish.publication import Publication
from flagrelease.publish.publish import publish
from flagrelease.publish.summary import plan_document, plan_text
from flagrelease.publish.upload.client import open_hub


def difference(publication: Publication, endpoint: str | None = None) -> Difference:
    """What the target holds under the publication's tag, compared with what the publication says."""
    if publication.hub is None:
        with progress("check", publication.bytes) as tracker:
            return compare(publication.by_path, list_folder(Path(publication.repo), tracker))
    client = open_hub(publication.hub, endpoint)
    return compare(publication.by_path, client.list_files(publication.repo, publication.version))


def test_without_yes_nothing_is_done(release: Path, report: Path, tmp_path: Path) -> None:
    for options in ({}, {"yes": True, "dry_run": True}):
        outcome = publish(release, "nvidia", str(tmp_path / "out"), report=report, **options)
        assert outcome.revision is None
    # Nobody listens at this address, and planning asks nobody.
    publish(release, "nvidia", "hf", report=report, endpoint="http://127.0.0.1:9")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp8-mp8", "report.json"]


def test_the_plan_is_what_is_then_done(release: Path, report: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    planned = plan_document(publish(release, "nvidia", str(folder), report=report).publication)
    done = publish(release, "nvidia", str(folder), report=report, yes=True)
    assert done.revision == str(folder)
    found = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size,
         "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.rglob("*") if path.is_file()
    ]  # fmt: skip
    assert sorted(found, key=lambda file: str(file["path"])) == planned["files"]
    assert planned["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert {"README.md", "report.json", "run_mp8.sh", "run_node.sh", "Containerfile", "compose.yaml"} <= {
        file["path"] for file in planned["files"]
    }
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*.sh")} == {0o644}
    assert json.dumps(planned)


@pytest.mark.parametrize(
    ("path", "other"), [("license", "LICENSE"), ("Encoding/x.py", "encoding"), ("Run_mp8.sh", "run_mp8.sh")]
)
def test_paths_that_differ_only_in_case_are_refused(tmp_path: Path, path: str, other: str) -> None:
    """ModelScope and case-insensitive file systems keep one of the two; such a release was published before."""
    release = write_release(tmp_path / "r", more={path: b"x"})
    first, other = sorted((path.partition("/")[0], other))
    with pytest.raises(UsageError, match=f"'{first}' and '{other}' differ only in case"):
        publish(release, "nvidia", "modelscope", allow_unvalidated=True)


def test_the_repository_is_the_recipes(release: Path, report: Path) -> None:
    publication = publish(release, "nvidia", "hf", report=report, private=True).publication
    assert publication.repo == "FlagRelease/DeepSeek-V4-Flash-nvidia-FlagOS"
    assert publication.siblings == ("FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS",)  # the other fp8 mp8 chip
    text = plan_text(publication)
    assert "repository on huggingface: FlagRelease/DeepSeek-V4-Flash-nvidia-FlagOS" in text
    assert "visibility private, licence MIT" in text
    assert "2 commits" in text
    assert "NOT VALIDATED" not in text
    own = publish(release, "nvidia", "hf", report=report, repo="me/mine").publication
    assert own.repo == "me/mine"
    assert own.siblings == ()


def test_a_release_without_draft_stages_is_no_sibling(tmp_path: Path) -> None:
    """It was one: only format, layout and o-groups were compared."""
    release = write_release(tmp_path / "release")
    path = release / "manifest.json"
    manifest = json.loads(path.read_bytes())
    (other,) = (one for one in manifest["recipe"]["releases"]["mthreads"] if one["layout"] == "mp8")
    other["drafts"] = "drop"
    path.write_text(json.dumps(manifest))
    assert publish(release, "nvidia", "hf", allow_unvalidated=True).publication.siblings == ()


def test_an_unvalidated_release_is_refused_or_says_so(release: Path) -> None:
    with pytest.raises(VerificationError, match="no report"):
        publish(release, "nvidia", "hf")
    publication = publish(release, "nvidia", "hf", allow_unvalidated=True).publication
    assert "NOT VALIDATED" in plan_text(publication)
    card = publication.by_path["README.md"].origin
    assert isinstance(card, bytes)
    assert b"published without validation" in card


def test_weights_without_a_proof_are_refused_or_said(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = report_for(b"", "nvidia")["stages"]
    stages[1]["figures"] = {}
    report = write_report(release, tmp_path / "r.json", stages=stages)
    words = ["publish", str(release), "--chip", "nvidia", "--to", str(tmp_path / "out"), "--report", str(report)]
    assert main([*words, "--yes", "--allow-unvalidated"]) == 5
    assert "--allow-unproved" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--yes", "--allow-unproved"]) == 0
    assert "WEIGHTS NOT PROVED" in capsys.readouterr().out
    sentence = "a fault of the conversion is not excluded.**"
    assert sentence in (tmp_path / "out" / "README.md").read_text()
    proved = write_report(release, tmp_path / "proved.json")
    card = publish(release, "nvidia", "hf", report=proved).publication.by_path["README.md"].origin
    assert isinstance(card, bytes)
    assert sentence not in card.decode()


def test_a_repo_for_a_folder_is_a_contradiction(release: Path, report: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--repo is for hubs"):
        publish(release, "nvidia", str(tmp_path / "out"), repo="a/b", report=report)


def test_the_plan_has_the_hubs_limits_beside_its_figures(release: Path, report: Path) -> None:
    """The limits are those of the hubs' documentation, as the facts sheet has them."""
    publication = publish(release, "nvidia", "modelscope", report=report).publication
    largest = max(path.stat().st_size for path in release.glob("*.safetensors"))
    inline = sum(file.size for file in publication.files if not file.path.endswith(".safetensors"))
    assert {each["what"]: (each["value"], each["limit"]) for each in plan_document(publication)["limits"]} == {
        "files": (len(publication.files), 100_000),
        "files in one folder": (len([file for file in publication.files if "/" not in file.path]), 50_000),
        "bytes of the largest file": (largest, 100 * 10**9),
        "bytes in all": (publication.bytes, None),
        "bytes outside LFS": (inline, 500 * 10**6),
    }
    text = plan_text(publish(release, "nvidia", "hf", report=report).publication)
    assert f"bytes of the largest file: {largest:,}; the hub takes 500,000,000,000\n" in text
    assert "; the hub takes 100,000\n" in text
    assert re.search(r"files in the one commit: \d+; the hub takes 25,000\n", text)
    assert "the hub sets no limit" in text
    assert "OVER" not in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_over_a_limit_the_plan_is_shown_and_then_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    release = write_release(tmp_path / "r")
    report = write_report(release, tmp_path / "report.json")
    limited = replace(HUGGING_FACE, limits=replace(HUGGING_FACE.limits, file_bytes=786_432))
    monkeypatch.setattr("flagrelease.publish.hubs.registry.HUBS", (limited, MODELSCOPE))
    with pytest.raises(UsageError, match="takes files of at most 786,432"):
        publish(release, "nvidia", "hf", report=report, yes=True, endpoint="http://127.0.0.1:9")
    words = ["publish", str(release), "--chip", "nvidia", "--to", "hf", "--report", str(report), "--yes"]
    assert main([*words, *(["--json"] if form == "json" else [])]) == 2
    out, err = capsys.readouterr()
    assert "model1-mp8.safetensors: 786,433 bytes; huggingface takes files of at most 786,432" in err
    if form == "json":
        document = json.loads(out)
        assert (document["revision"], len(document["problems"])) == (None, 1)
    else:
        assert "bytes of the largest file: 786,433; the hub takes 786,432  OVER" in out
        assert "REFUSED: model1-mp8.safetensors: 786,433 bytes" in out


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_to_huggingface(
    release: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub = HuggingFaceStandIn(tmp_path / "cas")
    try:
        done = publish(release, "nvidia", "hf", report=report, yes=True, endpoint=hub.url)
        again = publish(release, "nvidia", "hf", report=report, yes=True, endpoint=hub.url)
    finally:
        hub.close()
    assert done.revision == again.revision == hub.repositories[done.publication.repo].branches["main"]
    found = hub.files(done.publication.repo, done.publication.version)
    assert found == {file["path"]: file["sha256"] for file in plan_document(done.publication)["files"]}
    assert "PLANTED" not in "".join(capfd.readouterr())


def test_to_modelscope(release: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", modelscope_standin.TOKEN)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    modelscope_hub.set_default_config(modelscope_hub.HubConfig())
    hub = modelscope_standin.ModelScopeStandIn()
    try:
        done = publish(release, "nvidia", "modelscope", report=report, yes=True, endpoint=hub.url)
    finally:
        hub.close()
    assert done.revision == done.publication.version
    found = hub.files(done.publication.repo, done.publication.version)
    assert found == {file["path"]: file["sha256"] for file in plan_document(done.publication)["files"]}
    assert json.loads(hub.repositories[done.publication.repo].master["configuration.json"])["task"] == "text-generation"
    assert b"license: MIT License" in hub.repositories[done.publication.repo].master["README.md"]


def test_a_remote_that_lost_changed_or_gained_a_file_is_found(
    release: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", modelscope_standin.TOKEN)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    modelscope_hub.set_default_config(modelscope_hub.HubConfig())
    hub = modelscope_standin.ModelScopeStandIn()
    try:
        done = publish(release, "nvidia", "modelscope", report=report, yes=True, endpoint=hub.url).publication
        assert not difference(done, hub.url)
        tree = hub.repositories[done.repo].tags[done.version]
        del tree["LICENSE"]
        tree["model0-mp8.safetensors"] = tree["model0-mp8.safetensors"][:-1] + b"?"
        tree["more.txt"] = b""
        found = difference(done, hub.url)
    finally:
        hub.close()
    assert (found.missing, found.changed, found.extra) == (("LICENSE",), ("model0-mp8.safetensors",), ("more.txt",))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_huggingface_tag_that_changed_is_found(
    release: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub = HuggingFaceStandIn(tmp_path / "cas")
    try:
        done = publish(release, "nvidia", "hf", report=report, yes=True, endpoint=hub.url).publication
        assert not difference(done, hub.url)
        tree = hub.repositories[done.repo].tree(done.version)
        assert tree is not None
        del tree["LICENSE"]
        tree["config.json"] = regular(b'{"model_type": "deepseek_v3"}\n')  # of the same length
        tree["model0-mp8.safetensors"] = lfs(tree["model0-mp8.safetensors"].size, "0" * 64)
        tree["more.txt"] = regular(b"")
        found = difference(done, hub.url)
    finally:
        hub.close()
    assert found.missing == ("LICENSE",)
    assert found.changed == ("config.json", "model0-mp8.safetensors")
    assert found.extra == ("more.txt",)


def test_a_mirror_that_changed_is_found(release: Path, report: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = publish(release, "nvidia", str(folder), report=report, yes=True).publication
    assert not difference(done)
    (folder / "run_node.sh").write_text("#!/bin/sh\n")
    assert difference(done).changed == ("run_node.sh",)

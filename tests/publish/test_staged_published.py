"""From `convert --disk --to hf` to a publication, by the command line: no tensor file is sent twice or fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_standin import TOKEN, HuggingFaceStandIn, lfs
from publish_release import RECIPES, Converted, write_report

from flagrelease.cli import main
from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.online import verify_online
from flagrelease.publish.publish import PublishOutcome
from flagrelease.publish.reading.huggingface import HuggingFaceClient
from flagrelease.publish.reading.remote import Address
from flagrelease.publish.staging.published import publish_from
from flagrelease.retry import Patience

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceStandIn]:
    server = HuggingFaceStandIn(tmp_path / "cas")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.close()


@pytest.fixture
def address(hub: HuggingFaceStandIn, converted: Converted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Where the release of `converted` is staged; its card has a licence, which the hub asks for."""
    source = tmp_path / "source"  # a copy: other tests compare the release with what it was made of
    shutil.copytree(converted.source, source)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# the source's card\n")
    words = ["convert", str(RECIPES / "tiny.yaml"), "--checkpoint", str(source), "--chip", "nvidia:fp8-mp8"]
    with pytest.MonkeyPatch.context() as patch:  # the command has no option for another hub
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        assert main([*words, "--out", str(tmp_path / "out"), "--disk", "10MB", "--to", "hf", "--json"]) == 0
    found: str = json.loads(capsys.readouterr().out)["releases"]["fp8-mp8"]["place"]
    whole = ["--out", str(tmp_path / "whole")]
    assert main([*words, *whole]) == 0
    capsys.readouterr()
    return found


def publish(address: str, hub: HuggingFaceStandIn, report: Path | None, **options: Any) -> PublishOutcome:
    return publish_from(address, "nvidia", "hf", report=report, allow_unvalidated=False, endpoint=hub.url, **options)


def test_with_a_passing_report_the_staged_files_become_main(
    address: str, hub: HuggingFaceStandIn, tmp_path: Path
) -> None:
    release = tmp_path / "whole" / "fp8-mp8"
    report = write_report(release, tmp_path / "report.json")
    repo = address.removeprefix("hf://").partition("@")[0]
    sent = hub.received("PUT /blob/.*")
    assert sent >= sum(path.stat().st_size for path in release.glob("*.safetensors"))
    hub.seen.clear()
    assert publish(address, hub, report).revision is None  # the plan
    assert hub.files(repo, "main") == {}
    done = publish(address, hub, report, yes=True).publication
    assert hub.received("PUT /blob/.*") < 2_000_000  # documents; nothing of a tensor file
    assert hub.count("GET .*/resolve/.*safetensors") == 2 * 2 * 8  # headers
    from_folder = publish(str(release), hub, report, dry_run=True).publication
    assert done.version == from_folder.version
    assert hub.files(repo, "main") == from_folder.digests
    assert hub.files(repo, from_folder.version) == from_folder.digests
    client = HuggingFaceClient(hub.url, Patience(sleep=lambda _: None))
    found = verify_online(client, Address(HUGGING_FACE, repo, done.version), sample_bytes=100_000)
    assert found.passed
    assert found.published


@pytest.mark.parametrize(
    ("verdict", "repo", "kind", "said"),
    [
        (None, None, VerificationError, "no report; validate the release for nvidia first"),
        ("fail", None, VerificationError, "verdict"),
        ("pass", "FlagRelease/Another", UsageError, "its files are published in that repository alone"),
    ],
)
def test_what_publishing_asks_for_is_asked_for(
    verdict: str | None, repo: str | None, kind: type[Exception], said: str, address: str, hub: HuggingFaceStandIn,
    tmp_path: Path,
) -> None:  # fmt: skip
    release = tmp_path / "whole" / "fp8-mp8"
    report = None if verdict is None else write_report(release, tmp_path / "report.json", verdict=verdict)
    with pytest.raises(kind, match=said):
        publish(address, hub, report, yes=True, repo=repo)
    own = address.removeprefix("hf://").partition("@")[0]
    assert hub.files(own, "main") == {}
    assert hub.repositories[own].tags == {}


def test_only_a_whole_place_of_convert_is_published_from(address: str, hub: HuggingFaceStandIn, tmp_path: Path) -> None:
    release = tmp_path / "whole" / "fp8-mp8"
    report = write_report(release, tmp_path / "report.json")
    repo, _, branch = address.removeprefix("hf://").partition("@")
    with pytest.raises(UsageError, match="fetch anything else, and publish the folder"):
        publish(f"hf://{repo}@main", hub, report, yes=True)
    tree = hub.repositories[repo].tree(branch)
    assert tree is not None
    shard = tree.pop("model3-mp8.safetensors")
    with pytest.raises(VerificationError, match=r"model3-mp8.safetensors: lost or changed"):
        publish(address, hub, report, yes=True)
    tree["model3-mp8.safetensors"] = lfs(shard.size, "0" * 64)
    with pytest.raises(VerificationError, match=r"model3-mp8.safetensors: changed"):
        publish(address, hub, report, yes=True)
    tree["model3-mp8.safetensors"] = shard
    del tree["manifest.json"]
    with pytest.raises(VerificationError, match=r"no manifest.json: its conversion did not finish"):
        publish(address, hub, report, yes=True)
    assert hub.files(repo, "main") == {}

"""The digests that a hub lists for the source's revision, asked of both hubs' real clients against stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_standin import HuggingFaceStandIn, Repository, lfs, regular
from loopback import Fault
from modelscope_standin import ModelScopeStandIn
from modelscope_standin import Repository as ModelScopeRepository

from flagrelease.retry import Patience
from flagrelease.source import hub_listing
from flagrelease.source.hub_listing import listed_claims

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _modelscope_reads_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client reads the endpoint once a process, so an earlier test would decide who is asked here."""
    monkeypatch.setattr("modelscope_hub.config._default_config", None)


def test_hugging_face_lists_sha256_and_gits_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HuggingFaceStandIn(tmp_path)
    hub.repositories["o/m"] = Repository(private=False)
    revision = hub.repositories["o/m"].commit(
        "main", {"a.safetensors": lfs(5, "ab" * 32), "config.json": regular(b"{}")}
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    claims, remark = listed_claims("o/m", revision)
    hub.close()
    found = {path: [(one.algorithm, one.digest, one.by) for one in several] for path, several in claims.items()}
    assert found == {
        "a.safetensors": [("sha256", "ab" * 32, "huggingface")],
        "config.json": [("git-sha1", regular(b"{}").oid, "huggingface")],
    }
    assert remark.startswith("Hugging Face lists 2 files of o/m")


def test_a_busy_hub_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One 503 was enough to convert without the digests of the hub."""
    waits: list[float] = []
    monkeypatch.setattr(hub_listing, "_PATIENCE", Patience(attempts=3, longest_wait=10.0, sleep=waits.append))
    hub = HuggingFaceStandIn(tmp_path)
    hub.repositories["o/m"] = Repository(private=False)
    revision = hub.repositories["o/m"].commit("main", {"a.safetensors": lfs(5, "ab" * 32)})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    hub.faults.append(Fault("GET /api/models/o/m/.*", "status", times=2, status=503))
    claims, _ = listed_claims("o/m", revision)
    hub.close()
    assert set(claims) == {"a.safetensors"}
    assert waits == [1, 2]


def test_modelscope_is_asked_where_hugging_face_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = ModelScopeStandIn()
    hub.repositories["o/m"] = ModelScopeRepository(5, "mit", {"config.json": b"{}"})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    claims, remark = listed_claims("o/m", "master")
    hub.close()
    assert [(one.algorithm, one.by) for one in claims["config.json"]] == [("sha256", "modelscope")]
    assert claims["config.json"][0].digest == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert remark.startswith("ModelScope lists 1 files")


def test_no_hub_at_all_is_a_remark_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", NOBODY)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own retries
    claims, remark = listed_claims("o/m", "main")
    assert claims == {}
    assert "Hugging Face did not list o/m at main (ConnectError)" in remark
    assert "ModelScope did not list" in remark

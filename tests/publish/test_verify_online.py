"""`verify` of a release on a hub, with the real clients: what was lost, changed, gained or is not what was signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_standin
import modelscope_hub
import modelscope_standin
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from huggingface_standin import HuggingFaceStandIn, lfs, regular
from loopback import Fault
from modelscope_standin import ModelScopeStandIn
from publish_release import Converted
from safetensors.numpy import save

from flagrelease.cli import main
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.online import OnlineReport, verify_online
from flagrelease.publish.publish import publish
from flagrelease.publish.reading.huggingface import HuggingFaceClient
from flagrelease.publish.reading.modelscope import ModelScopeClient
from flagrelease.publish.reading.remote import Address, parse_address, take
from flagrelease.publish.sample import prove_sample
from flagrelease.publish.upload.client import HubClient
from flagrelease.records.manifest import FileRecord, Manifest, TensorRecord
from flagrelease.retry import Patience

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SHARD = "model3-mp8.safetensors"


@dataclass
class Online:
    """A publication on a stand-in, and what a test does to it. `files` maps paths of the tag to their bytes."""

    hub: HuggingFaceStandIn | ModelScopeStandIn
    address: Address
    keys: Path

    def client(self) -> HubClient:
        kind = HuggingFaceClient if self.address.hub is HUGGING_FACE else ModelScopeClient
        return kind(self.hub.url, Patience(sleep=lambda _: None))

    def check(self, **options: Any) -> OnlineReport:
        return verify_online(self.client(), self.address, **options)

    def public_key(self) -> bytes:
        return (self.keys / "public.pem").read_bytes()

    def put(self, path: str, content: bytes | None) -> None:
        """Change what the tag holds, behind everybody's back; None removes it."""
        tag = self.address.revision or ""
        if isinstance(self.hub, ModelScopeStandIn):
            tree = self.hub.repositories[self.address.repo].tags[tag]
            tree.pop(path, None)
            if content is not None:
                tree[path] = content
            return
        held = self.hub.repositories[self.address.repo]
        entries = held.tree(tag)
        assert entries is not None
        old = entries.pop(path, None)
        if content is not None and old is not None and old.sha256 is not None:
            entries[path] = lfs(len(content), hashlib.sha256(content).hexdigest())
            held.blobs[entries[path].sha256 or ""] = content
        elif content is not None:
            entries[path] = regular(content)

    def get(self, path: str) -> bytes:
        held, tag = self.hub.repositories[self.address.repo], self.address.revision or ""
        if isinstance(held, modelscope_standin.Repository):
            return held.tags[tag][path]
        entry = (held.tree(tag) or {})[path]
        return held.blobs[entry.sha256] if entry.sha256 else entry.content or b""


@pytest.fixture(params=["hf", "modelscope"])
def online(
    request: pytest.FixtureRequest, converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Online]:
    monkeypatch.setenv("HF_TOKEN", huggingface_standin.TOKEN)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", modelscope_standin.TOKEN)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _: None)
    modelscope_hub.set_default_config(modelscope_hub.HubConfig())
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    hub = HuggingFaceStandIn(tmp_path / "cas") if request.param == "hf" else ModelScopeStandIn()
    done = publish(
        converted.release, converted.chip, request.param, allow_unvalidated=True, yes=True, endpoint=hub.url,
        signing_key=tmp_path / "key.pem",
    ).publication  # fmt: skip
    assert done.hub is not None
    hub.seen.clear()
    yield Online(hub, Address(done.hub, done.repo, done.version), tmp_path)
    hub.close()


def test_a_sound_publication(online: Online, converted: Converted) -> None:
    report = online.check(key=online.public_key())
    assert report.problems == ()
    assert report.passed
    assert report.signature == "checked"
    assert report.version == online.address.revision
    assert report.licence in ("apache-2.0", "Apache License 2.0")
    # No tensor file was read, and nothing was written.
    read = [seen.path for seen in online.hub.seen if seen.method == "GET"]
    assert not any(".safetensors" in path for path in read if "index.json" not in path)
    assert {seen.method for seen in online.hub.seen} <= {"GET", "HEAD"}
    assert json.loads(report.model_dump_json())["passed"] is True


def test_the_default_branch_is_checked_too(online: Online) -> None:
    online.address = Address(online.address.hub, online.address.repo, None)
    assert online.check().passed
    assert online.check().signature == "not-checked"


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        (lambda o: o.put("config.json", None), "config.json: lost"),
        (lambda o: o.put(SHARD, None), f"{SHARD}: lost"),
        (lambda o: o.put("more.txt", b"more"), "more.txt: not of this release"),
        (lambda o: o.put("config.json", flip(o.get("config.json"))), "config.json: changed"),
        (lambda o: o.put(SHARD, flip(o.get(SHARD))), f"{SHARD}: changed"),
        (lambda o: o.put(SHARD, o.get(SHARD)[:-1]), f"{SHARD}: changed"),
        (lambda o: o.put("run_mp8.sh", b"#!/bin/sh\n"), "run_mp8.sh: changed"),
    ],
    ids=["lost", "lost shard", "gained", "changed", "changed shard", "cut shard", "changed script"],
)
def test_what_a_remote_lost_changed_or_gained_is_found(
    online: Online, plant: Callable[[Online], None], problem: str
) -> None:
    plant(online)
    report = online.check(key=online.public_key())
    assert problem in report.problems
    assert not report.passed


def test_a_publication_without_records_is_none(online: Online) -> None:
    online.put("provenance.intoto.json", None)
    with pytest.raises(VerificationError, match=r"no provenance\.intoto\.json"):
        online.check()


def test_a_statement_that_was_made_to_fit_is_not_what_was_signed(online: Online) -> None:
    """Somebody changed the card and rewrote the statement: only the signature, and the tag's name, tell."""
    card = online.get("README.md") + b"\nBuy here.\n"
    statement = json.loads(online.get("provenance.intoto.json"))
    (subject,) = [item for item in statement["subject"] if item["name"] == "README.md"]
    subject["digest"]["sha256"] = hashlib.sha256(card).hexdigest()
    text = json.dumps(statement, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    online.put("README.md", card)
    online.put("provenance.intoto.json", text)
    report = online.check(key=online.public_key())
    assert "README.md: not what was signed" in report.problems
    assert "provenance.intoto.json: not what was signed" in report.problems
    assert f"these files have version {report.version}, not {online.address.revision}" in report.problems


def test_signatures(online: Online) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert online.check(key=pem).problems == ("model.sig: not signed by this key: it names another one, or none",)
    with pytest.raises(UsageError, match="PEM"):
        online.check(key=b"no key")
    online.put("model.sig", None)
    assert "no model.sig: nobody signed it" in online.check(key=online.public_key()).problems


def test_visibility_and_licence(online: Online) -> None:
    assert online.check(private=True).problems == ("the repository is public, not private",)
    held = online.hub.repositories[online.address.repo]
    if isinstance(held, modelscope_standin.Repository):
        held.licence = "MIT License"
        held.visibility = 3
        problems = online.check().problems
        assert "the repository is internal, not public" in problems
    else:
        held.private = True
        online.put("README.md", b"---\nlicense: mit\n---\n")
        problems = online.check().problems
        assert "the repository is private, not public" in problems
    assert any("the recipe says Apache-2.0" in problem for problem in problems)


def test_a_sample_is_read_and_proved(online: Online) -> None:
    report = online.check(sample_bytes=1 << 20)
    assert report.passed
    assert report.tensors > 8
    assert 1 << 18 < report.tensor_bytes <= 1 << 20


def test_a_hub_that_serves_other_bytes_than_it_lists_is_found(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing is right and the data are not: only the sample can see it."""
    client = online.client()
    read = client.read

    def serve(repo: str, revision: str, path: str, begin: int, count: int) -> bytes:
        content = read(repo, revision, path, begin, count)
        return content if not path.endswith(".safetensors") or begin < 1 << 14 else flip(content)

    monkeypatch.setattr(client, "read", serve)
    assert verify_online(client, online.address).passed
    report = verify_online(client, online.address, sample_bytes=1 << 20)
    assert any("the bytes served are not those of the manifest" in problem for problem in report.problems)


def test_a_sample_smaller_than_any_tensor_is_refused() -> None:
    content = save({"w": np.zeros(64, dtype=np.float32)})
    manifest = Manifest.model_construct(
        files=(FileRecord(path="model.safetensors", size=len(content), sha256="0" * 64),),
        tensors={"w": TensorRecord(dtype="F32", shape=(64,), blake3="0" * 64)},
    )

    def read(path: str, begin: int, count: int) -> bytes:
        return content[begin : begin + count]

    with pytest.raises(UsageError, match="too few for any tensor"):
        prove_sample(manifest, read, 255, "seed")
    assert prove_sample(manifest, read, 256, "seed").problems  # it was read, and has another digest


def test_what_is_not_there_is_said(online: Online) -> None:
    client = online.client()
    with pytest.raises(VerificationError, match="no such repository"):
        verify_online(client, Address(online.address.hub, "FlagRelease/absent", None))
    with pytest.raises(VerificationError, match="no tag 'v9'; it has v0"):
        verify_online(client, Address(online.address.hub, online.address.repo, "v9"))


def test_faults_are_waited_out(online: Online) -> None:
    reading = "GET .*/(resolve|repo)(/.*)?"
    online.hub.faults = [Fault(reading, "status", 2, 503), Fault(reading, "cut", 1)]
    assert online.check(sample_bytes=1 << 18).passed
    assert not any(fault.times for fault in online.hub.faults)


def test_a_hub_that_does_not_answer_is_a_network_error(online: Online) -> None:
    online.hub.faults = [Fault("GET .*", "status", 10_000, 500)]
    with pytest.raises(NetworkError, match="Run the same command again"):
        online.check()


def test_ranges_are_what_was_asked_for() -> None:
    assert take(206, {}, [b"ab", b"cd", b"ef"], 7, 3) == b"abc"
    assert take(200, {}, [b"abcdef"], 0, 3) == b"abc"
    with pytest.raises(NetworkError, match="HTTP 200"):
        take(200, {}, [b"abcdef"], 1, 3)
    with pytest.raises(ConnectionError, match="2 of 3 bytes"):
        take(206, {}, [b"ab"], 0, 3)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://a/b@v1", Address(HUGGING_FACE, "a/b", "v1")),
        ("hf://a/b", Address(HUGGING_FACE, "a/b", None)),
        ("modelscope://FlagRelease/x-y.z@v0.1.0-0123456789ab", Address(MODELSCOPE, "FlagRelease/x-y.z",
                                                                       "v0.1.0-0123456789ab")),
        ("releases/fp8-mp8", None),
    ],
)  # fmt: skip
def test_addresses(text: str, address: Address | None) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["hf://a", "https://huggingface.co/a/b", "hf://a/b/c", "hf://a/b@", "ftp://a/b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert main(["verify", text]) == 2

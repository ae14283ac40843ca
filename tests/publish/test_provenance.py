"""Statement and signature. `signed/` holds a bundle that model_signing 1.1.1 wrote for the three files below."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.publish import publish
from flagrelease.publish.signature import make_signature, read_signature

SIGNED = Path(__file__).parent / "signed"
CONTENTS = {"a.txt": b"alpha\n", "sub/b.txt": b"beta\n", "empty": b""}
DIGESTS = {path: hashlib.sha256(content).hexdigest() for path, content in CONTENTS.items()}


def write_key(path: Path, key: Any, encryption: Any = None) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    return path


def public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def payload_of(bundle: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    return document


def test_a_bundle_of_model_signing_is_read() -> None:
    theirs = (SIGNED / "model_signing-1.1.1.sig").read_bytes()
    assert read_signature(theirs, (SIGNED / "public.pem").read_bytes()) == DIGESTS


def test_ours_says_what_theirs_says(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    theirs = payload_of((SIGNED / "model_signing-1.1.1.sig").read_bytes())
    ours = payload_of(make_signature("m", DIGESTS, key))
    for statement in (theirs, ours):
        ignored = statement["predicate"]["serialization"].pop("ignore_paths")
        assert ".gitattributes" in ignored
    assert ours == theirs


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_signed_twice_is_the_same_and_a_change_is_found(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    path = write_key(tmp_path / "key.pem", key)
    bundle = make_signature("m", DIGESTS | {".gitattributes": "0" * 64}, path)
    assert bundle == make_signature("m", DIGESTS | {".gitattributes": "0" * 64}, path)
    assert read_signature(bundle, public(key)) == DIGESTS
    document = json.loads(bundle)
    payload = base64.b64decode(document["dsseEnvelope"]["payload"]).replace(b"a.txt", b"b.txt")
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(VerificationError, match="changed since"):
        read_signature(json.dumps(document).encode(), public(key))
    with pytest.raises(VerificationError, match="not signed by this key"):
        read_signature(bundle, public(ec.generate_private_key(curve)))


@pytest.mark.parametrize("bundle", [b"", b"{}", b"[]", b'{"dsseEnvelope": {"payload": "!", "signatures": []}}'])
def test_what_is_no_bundle_is_refused(bundle: bytes) -> None:
    with pytest.raises(VerificationError, match="not a Sigstore bundle"):
        read_signature(bundle, (SIGNED / "public.pem").read_bytes())


def test_keys_that_do_not_sign_are_refused_without_their_content(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for path, message in (
        (tmp_path / "absent.pem", "cannot be read"),
        (write_key(tmp_path / "locked.pem", key, BestAvailableEncryption(b"x")), "unencrypted"),
        (write_key(tmp_path / "ed.pem", ed25519.Ed25519PrivateKey.generate()), "elliptic-curve"),
        (write_key(tmp_path / "k1.pem", ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
    ):
        with pytest.raises(UsageError, match=message):
            make_signature("m", DIGESTS, path)
    (tmp_path / "torn.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nPLANTED\n")
    with pytest.raises(UsageError) as caught:
        make_signature("m", DIGESTS, tmp_path / "torn.pem")
    assert "PLANTED" not in str(caught.value)


def test_a_publication_is_stated_and_signed_whole(release: Path, report: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = write_key(tmp_path / "key.pem", key)
    folder = tmp_path / "out"
    publish(release, "nvidia", str(folder), report=report, signing_key=path, yes=True)
    found = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }
    signature = (folder / "model.sig").read_bytes()
    del found["model.sig"]
    assert read_signature(signature, public(key)) == found
    statement = json.loads((folder / "provenance.intoto.json").read_bytes())
    del found["provenance.intoto.json"]
    assert {item["name"]: item["digest"]["sha256"] for item in statement["subject"]} == found
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["chip"] == "nvidia"
    assert definition["resolvedDependencies"][0]["name"] == "deepseek-ai/DeepSeek-V4-Flash"
    assert str(tmp_path) not in json.dumps(statement)
    again = publish(release, "nvidia", str(folder), report=report, signing_key=path, yes=True)
    assert again.revision == str(folder)  # the same bytes, so there is nothing to do


def test_a_bundle_made_elsewhere_goes_along_if_it_is_over_these_files(
    release: Path, report: Path, tmp_path: Path
) -> None:
    """The way of a keyless signature: a folder without one is signed by another tool, its bundle published with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    path = write_key(tmp_path / "key.pem", key)
    unsigned = publish(release, "nvidia", str(tmp_path / "out"), report=report, yes=True).publication
    bundle = tmp_path / "elsewhere.sig"
    bundle.write_bytes(make_signature("out", unsigned.digests, path))
    done = publish(release, "nvidia", str(tmp_path / "signed"), report=report, signature=bundle, yes=True).publication
    assert (tmp_path / "signed" / "model.sig").read_bytes() == bundle.read_bytes()
    assert set(done.digests) - set(unsigned.digests) == {"model.sig"}
    # For Hugging Face the files are the same; ModelScope's card is another.
    publish(release, "nvidia", "hf", report=report, signature=bundle)
    with pytest.raises(UsageError, match=r"README\.md: not what was signed"):
        publish(release, "nvidia", "modelscope", report=report, signature=bundle)
    with pytest.raises(UsageError, match="one of them"):
        publish(release, "nvidia", "hf", report=report, signature=bundle, signing_key=path)
    with pytest.raises(UsageError, match="cannot be read"):
        publish(release, "nvidia", "hf", report=report, signature=tmp_path / "absent")
    with pytest.raises(VerificationError, match="not a Sigstore bundle"):
        publish(release, "nvidia", "hf", report=report, signature=report)

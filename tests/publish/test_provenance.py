"""Statement, signature, bill of materials. `signed/` has bundles that versions of model_signing wrote for three files.

1.1.1 signed with the key of public.pem, the older ones with that of public-older.pem; model_signing 1.1.1 verifies all.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.bundle import encoded
from flagrelease.publish.publish import publish
from flagrelease.publish.signature import check_signed, make_signature, read_signature

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


BUNDLES = sorted(SIGNED.glob("*.sig"))


def key_of(bundle: Path) -> bytes:
    return (SIGNED / ("public.pem" if "1.1.1" in bundle.name else "public-older.pem")).read_bytes()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.stem)
def test_bundles_of_every_model_signing_stay_verifiable(bundle: Path) -> None:
    assert read_signature(bundle.read_bytes(), key_of(bundle)) == DIGESTS
    assert check_signed(bundle.read_bytes(), key_of(bundle), DIGESTS) == []
    other = public(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(VerificationError, match="not signed by this key"):
        read_signature(bundle.read_bytes(), other)


def mutations(content: bytes) -> Iterator[bytes]:
    """Each byte with a bit changed; and in turn in upper or lower case, left out, doubled, swapped with the next."""
    for place, byte in enumerate(content):
        before, after = content[:place], content[place + 1 :]
        others = (bytes([byte ^ 32]) + after, after, bytes([byte, byte]) + after, after[:1] + bytes([byte]) + after[1:])
        for changed in (before + bytes([byte ^ 1]) + after, before + others[place % 4]):
            if changed != content:
                yield changed


@pytest.mark.parametrize("bundle", [path for path in BUNDLES if path.stem[14:] in ("0.2.0", "1.0.0", "1.1.1")])
def test_no_byte_of_a_bundle_can_be_changed(bundle: Path) -> None:
    """What is accepted after a change says the same to a reader of JSON: a blank more between two words."""
    content, key = bundle.read_bytes(), key_of(bundle)
    said, accepted = json.loads(content), 0
    for changed in mutations(content):
        try:
            read_signature(changed, key)
        except VerificationError:
            continue
        assert json.loads(changed) == said, changed
        accepted += 1
    assert accepted < 20, "a compact document has few places for a blank"


def test_a_bundle_that_names_a_file_twice_or_in_another_order_is_refused(tmp_path: Path) -> None:
    """Signed by the right key, and still not what any signer writes: its root digest is that of an order."""
    key = ec.generate_private_key(ec.SECP256R1())
    document = json.loads(make_signature("m", DIGESTS, write_key(tmp_path / "key.pem", key)))
    resources = payload_of(json.dumps(document).encode())["predicate"]["resources"]
    for order, message in (
        ([resources[1], resources[0], resources[2]], "root digest"), ([*resources, resources[0]], "named twice"),
        (resources[:2], "root digest"), ([{**resources[0], "algorithm": "md5"}, *resources[1:]], "another algorithm"),
        ([{**resources[0], "digest": "A" * 64}, *resources[1:]], "no SHA-256"),
    ):  # fmt: skip
        statement = payload_of(json.dumps(document).encode())
        statement["predicate"]["resources"] = order
        payload = json.dumps(statement).encode()
        signed = key.sign(encoded(payload), ec.ECDSA(SHA256()))
        document_of = copy.deepcopy(document)
        envelope = document_of["dsseEnvelope"]
        envelope["payload"] = base64.b64encode(payload).decode()
        envelope["signatures"][0]["sig"] = base64.b64encode(signed).decode()
        with pytest.raises(VerificationError, match=message):
            read_signature(json.dumps(document_of).encode(), public(key))


def test_any_change_of_a_signed_folder_is_found(release: Path, report: Path, tmp_path: Path) -> None:
    """Each file: a bit at a place that the seed chooses, renamed, swapped with another, gone; and a file more."""
    key, rng = ec.generate_private_key(ec.SECP256R1()), random.Random(0)
    folder = tmp_path / "out"
    publish(
        release, "nvidia", str(folder), report=report, yes=True, signing_key=write_key(tmp_path / "key.pem", key)
    )  # fmt: skip
    whole = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    signature = whole.pop("model.sig")

    def differing(files: dict[str, bytes]) -> list[str]:
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        return check_signed(signature, public(key), digests)

    assert differing(whole) == []
    names = sorted(whole)
    for number, name in enumerate(names):
        content = whole[name] or b"?"
        place = rng.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        rest = {path: data for path, data in whole.items() if path != name}
        other = names[number - 1]
        assert differing({**rest, name: flipped}) == [f"{name}: not what was signed"]
        assert differing({**rest, f"{name}2": content}) == [
            f"{path}: not what was signed" for path in (name, f"{name}2")
        ]
        assert differing(rest) == [f"{name}: not what was signed"]
        if whole[other] != whole[name]:
            swapped = differing({**whole, name: whole[other], other: whole[name]})
            assert swapped == [f"{path}: not what was signed" for path in sorted((name, other))]
    assert differing({**whole, "more": b""}) == ["more: not what was signed"]


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


def test_the_bill_of_materials_is_valid_and_holds_the_manifests_digests(
    release: Path, report: Path, tmp_path: Path
) -> None:
    """By the official schemas, which refuse a planted fault; a newer version of the format takes it too."""
    folder = tmp_path / "out"
    publish(release, "nvidia", str(folder), report=report, yes=True)
    text = (folder / "bom.cdx.json").read_text(encoding="utf-8")
    for version in (SchemaVersion.V1_6, SchemaVersion.V1_7):
        assert JsonStrictValidator(version).validate_str(text) is None
        for planted in (text.replace("SHA-256", "SHA-257", 1), text.replace('"type"', '"kind"', 1)):
            assert planted != text
            assert JsonStrictValidator(version).validate_str(planted) is not None
    document, manifest = json.loads(text), json.loads((folder / "manifest.json").read_bytes())
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert model["pedigree"]["ancestors"][0]["supplier"] == {"name": "deepseek-ai"}
    assert {"name": "flagrelease:training", "value": "none: the weights were only stored in another format"} in (
        model["properties"]
    )
    files = {one["name"]: one["hashes"][0]["content"] for one in document["components"] if one["type"] == "file"}
    listed = {file["path"]: file["sha256"] for file in manifest["files"] if file["path"] != "README.md"}
    assert files == listed | {"manifest.json": model["hashes"][0]["content"]}
    assert str(tmp_path) not in text
    other = publish(release, "nvidia", str(tmp_path / "other"), report=report, yes=True).publication
    assert other.digests["bom.cdx.json"] == hashlib.sha256(text.encode()).hexdigest(), "no name of a folder, no time"

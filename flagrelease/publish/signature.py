"""Writes and reads OpenSSF Model Signing signatures, from digests that are known already, so no file is read again.

Format: a Sigstore bundle v0.3 with a DSSE envelope around an in-toto Statement v1 of predicate type
https://model_signing/signature/v1.0, as model_signing 1.1 writes and verifies it (`bundle.py` reads older ones). ECDSA
on P-256, P-384 or P-521 with a deterministic nonce (RFC 6979), so signing the same release twice gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.bundle import BUNDLE_TYPE, PAYLOAD_TYPE, PREDICATE_TYPE, encoded, open_bundle, root_digest
from flagrelease.publish.hubs.names import SIGNATURE_NAME
from flagrelease.publish.reading.extra import require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

# Files that git and the hubs put beside a model; model_signing leaves them out too.
_NOT_SIGNED = (".git", ".gitattributes", ".github", ".gitignore", SIGNATURE_NAME)


def make_signature(name: str, digests: Mapping[str, str], key: Path) -> bytes:
    """Sign the files of the model `name`, given as path -> SHA-256, with the private key in a PEM file.

    Returns:
        The bundle, as JSON.

    Raises:
        UsageError: the key cannot be read, is encrypted, or is not on a NIST curve.
    """
    require("cryptography")
    from cryptography.hazmat.primitives.asymmetric import ec

    private = _read_key(key)
    payload = json.dumps(_statement(name, digests), sort_keys=True).encode()
    algorithm = ec.ECDSA(_hash_of(private.public_key()), deterministic_signing=True)
    document = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(_pem(private.public_key())).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(private.sign(encoded(payload), algorithm)).decode()}],
        },
    }
    return json.dumps(document, sort_keys=True).encode() + b"\n"


def read_signature(bundle: bytes, public_key: bytes) -> dict[str, str]:
    """Check a bundle's signature with a public key (PEM), and return what was signed as path -> SHA-256.

    Raises:
        UsageError: the key is not an elliptic-curve key.
        VerificationError: not a bundle of this kind, or not signed by the key.
    """
    require("cryptography")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_key)
    except ValueError:
        raise UsageError("the public key is not in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError("the public key is not an elliptic-curve key")
    opened = open_bundle(bundle)
    if not opened.names_key(_pem(key)):
        raise VerificationError(f"{SIGNATURE_NAME}: not signed by this key: it names another one, or none")
    try:
        key.verify(opened.signature, opened.encoded, ec.ECDSA(hashes.SHA256() if opened.old else _hash_of(key)))
    except InvalidSignature:
        raise VerificationError(f"{SIGNATURE_NAME}: not signed by this key, or changed since") from None
    return opened.files


def read_unchecked(bundle: bytes) -> dict[str, str]:
    """Return what a bundle says was signed, as path -> SHA-256, without checking the signature.

    Bundles that sigstore signed without a key can be checked only over the network.

    Raises:
        VerificationError: not a bundle of this kind.
    """
    return open_bundle(bundle).files


def check_signed(bundle: bytes | None, public_key: bytes, digests: Mapping[str, str]) -> list[str]:
    """Compare every file (path -> SHA-256) with what the key signed; return the differences as sentences."""
    if bundle is None:
        return [f"no {SIGNATURE_NAME}: nobody signed it"]
    try:
        signed = read_signature(bundle, public_key)
    except VerificationError as error:
        return [str(error)]
    return unsigned_files(signed, digests)


def unsigned_files(signed: Mapping[str, str], digests: Mapping[str, str]) -> list[str]:
    """Compare `digests` with what was signed; return the differences as sentences."""
    there = {path: digest for path, digest in digests.items() if path.partition("/")[0] not in _NOT_SIGNED}
    return [
        f"{path}: not what was signed"
        for path in sorted(there.keys() | signed.keys())
        if there.get(path) != signed.get(path)
    ]


def _statement(name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """The statement to sign. Its root digest is the SHA-256 of all file digests joined in the order of their paths."""
    signed = [path for path in sorted(digests) if path.partition("/")[0] not in _NOT_SIGNED]
    root = root_digest([digests[path] for path in signed])
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_NOT_SIGNED),
            },
            "resources": [{"name": p, "algorithm": "sha256", "digest": digests[p]} for p in signed],
        },
    }


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError):
        # The library's message may quote the file.
        raise UsageError(f"{path}: not an unencrypted private key in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path}: not an elliptic-curve key")
    return key


def _hash_of(key: EllipticCurvePublicKey) -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    known: dict[str, HashAlgorithm] = {
        "secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()
    }  # fmt: skip
    if (algorithm := known.get(key.curve.name)) is None:
        raise UsageError(f"a key on {key.curve.name} cannot sign a model; use P-256, P-384 or P-521")
    return algorithm


def _pem(key: EllipticCurvePublicKey) -> bytes:
    """By whose SHA-256 model_signing names a key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

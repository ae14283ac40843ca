"""Opens Sigstore bundles of models, strictly: what a bundle says beside the signed payload must be what it has to be.

model_signing 0.2 to 1.1 wrote the bundles that are read; tests/publish/signed has one of each. 0.2 has subjects in the
place of resources, and signs another encoding of the payload, a defect that its successors read too. Its predicate
tells it from the others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.names import SIGNATURE_NAME
from flagrelease.strict_json import parse_json

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_OLD_PREDICATE_TYPE = "https://model_signing/Digests/v0.1"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_SHA256 = re.compile("[0-9a-f]{64}")
_KEY_DETAILS = ("PKIX_ECDSA_P256_SHA_256", "PKIX_ECDSA_P384_SHA_384", "PKIX_ECDSA_P521_SHA_512")


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """A bundle whose signature is not checked yet.

    Attributes:
        files: what it says was signed, path -> SHA-256.
        signature: over `encoded`.
        material: how the bundle says that it is verified; it is not signed.
        old: written by model_signing 0.2, which always signs with SHA-256.
    """

    files: dict[str, str]
    encoded: bytes
    signature: bytes
    material: dict[str, Any]
    old: bool

    def names_key(self, pem: bytes) -> bool:
        """Whether the bundle names this public key, by its digest or whole, and nothing else that is not signed."""
        key = self.material.get("publicKey")
        if set(self.material) - {"publicKey", "tlogEntries"} or self.material.get("tlogEntries", []) != []:
            return False
        if isinstance(key, dict) and set(key) == {"hint"}:
            return bool(key["hint"] == hashlib.sha256(pem).hexdigest())
        if isinstance(key, dict) and set(key) == {"rawBytes", "keyDetails"}:
            return bool(key["rawBytes"] == base64.b64encode(pem).decode()) and key["keyDetails"] in _KEY_DETAILS
        return False


def open_bundle(content: bytes) -> OpenedBundle:
    """Read a bundle.

    Raises:
        VerificationError: not a bundle of a model, or one that says a thing twice or in a form that nobody writes.
    """
    try:
        document = parse_json(content)
        envelope = _exactly(document, "mediaType", "verificationMaterial", "dsseEnvelope")["dsseEnvelope"]
        (signature,) = _exactly(envelope, "payload", "payloadType", "signatures")["signatures"]
        if document["mediaType"] != BUNDLE_TYPE or envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError("another type of bundle or payload")
        if set(signature) - {"sig", "keyid"} or signature.get("keyid") not in (None, ""):
            raise ValueError("a signature with more than it needs")
        payload, material = _decoded(envelope["payload"]), document["verificationMaterial"]
        if not isinstance(material, dict):
            raise TypeError("verificationMaterial is no object")
        statement = parse_json(payload)
        old = statement["predicateType"] == _OLD_PREDICATE_TYPE
        files = _old_files(statement) if old else _files(statement)
        return OpenedBundle(files, encoded(payload, old), _decoded(signature["sig"]), material, old)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{SIGNATURE_NAME}: not a Sigstore bundle of a model ({error!r})") from error


def encoded(payload: bytes, old: bool = False) -> bytes:
    """DSSE's pre-authentication encoding, which is what is signed; `old`: as model_signing 0.2 has it."""
    if old:
        return f"DSSEV1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} {payload!r}".encode()
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def root_digest(digests: list[str]) -> str:
    """The digest of the whole: SHA-256 of the files' digests joined in the order of the list."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _files(statement: Any) -> dict[str, str]:
    """Of a statement since 0.3, whose root digest must be that of its resources in their order."""
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError(f"signs {statement['predicateType']}, not a model")
    (subject,) = statement["subject"]
    resources = statement["predicate"]["resources"]
    if any(one["algorithm"] != "sha256" for one in resources):
        raise ValueError("digests of another algorithm")
    files = _unique([(one["name"], one["digest"]) for one in resources])
    if subject["digest"] != {"sha256": root_digest([one["digest"] for one in resources])}:
        raise ValueError("its root digest is not that of its files")
    return files


def _old_files(statement: Any) -> dict[str, str]:
    if statement["_type"] != _STATEMENT_TYPE:
        raise ValueError("another type of statement")
    return _unique([(one["name"], one["digest"]["sha256"]) for one in statement["subject"]])


def _unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
    files = dict(pairs)
    if len(files) != len(pairs):
        raise ValueError("a file is named twice")
    if not all(isinstance(name, str) and _SHA256.fullmatch(digest) for name, digest in pairs):
        raise ValueError("a digest that is no SHA-256")
    return files


def _exactly(value: Any, *keys: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"{' and '.join(keys)} are expected")
    return value


def _decoded(text: Any) -> bytes:
    """Base64 in the one spelling that every encoder gives."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"not base64 ({error})") from None
    if base64.b64encode(content).decode() != text:
        raise ValueError("base64 with bits that mean nothing")
    return content

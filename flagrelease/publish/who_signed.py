"""The card's section on signatures: how a reader checks who signed a publication, by commands that work today."""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.publish.claims import Advice, Line
from flagrelease.publish.hubs.names import BOM_NAME, SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.publish.records import Records


def who_signed(records: Records) -> Iterator[Line]:
    """Lines of the section. They hold with a signature and without one, which is made over the finished card.

    `.cache` is what `hf download` leaves in a folder.
    """
    yield "## Who signed it"
    yield ""
    yield Advice(
        f"If there is a `{SIGNATURE_NAME}`, it is an OpenSSF Model Signing bundle over every other file. Take the "
        "publisher's\npublic key from elsewhere than this repository, and check with flagrelease or with OpenSSF's own "
        "tool:"
    )
    yield ""
    yield "```bash"
    yield "flagrelease verify . --key ../public.pem"
    yield "pip install model-signing pyOpenSSL"
    yield f"model_signing verify key . --signature {SIGNATURE_NAME} --public_key ../public.pem --ignore-paths .cache"
    yield "```"
    yield ""
    yield Advice(
        f"`{BOM_NAME}` is a bill of materials for tools that read CycloneDX, `{STATEMENT_NAME}` the SLSA provenance: "
        "what was made\nfrom what, and by which version of flagrelease."
    )

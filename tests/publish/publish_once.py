"""One publication in a process of its own, which a test kills: `publish_once.py HUB ENDPOINT RELEASE REPO`."""

from __future__ import annotations

import sys
from pathlib import Path

from flagrelease.chips.table import get_chip
from flagrelease.console import progress
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.publication import make_publication
from flagrelease.publish.records import read_records
from flagrelease.publish.upload.huggingface import HuggingFace
from flagrelease.publish.upload.modelscope import ModelScope
from flagrelease.retry import Patience

CARDS = {
    "huggingface": b"---\nlicense: mit\n---\n# the card\n",
    "modelscope": b"---\nlicense: MIT License\n---\n# the card\n",
}


def main(hub: str, endpoint: str, release: str, repo: str) -> None:
    records = read_records(Path(release), get_chip("nvidia"), None, allow_unvalidated=True)
    patience = Patience(sleep=lambda _: None)
    facts = MODELSCOPE if hub == "modelscope" else HUGGING_FACE
    publication = make_publication(records, facts, repo, False, {"README.md": CARDS[hub]})
    with progress("publish", publication.bytes) as tracker:
        client = ModelScope if hub == "modelscope" else HuggingFace
        client(endpoint, patience).publish(publication, tracker)


if __name__ == "__main__":
    main(*sys.argv[1:])

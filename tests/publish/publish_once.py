"""One publication in a process of its own, which a test kills: `publish_once.py HUB ENDPOINT RELEASE REPO`."""

from __future__ import annotations

import sys
from pathlib import Path

from flagrelease.console import progress
from flagrelease.publish.huggingface import HuggingFace
from flagrelease.publish.patience import Patience
from flagrelease.publish.publication import make_publication
from flagrelease.publish.records import read_records

CARD = b"---\nlicense: mit\n---\n# the card\n"


def main(hub: str, endpoint: str, release: str, repo: str) -> None:
    assert hub == "huggingface"
    records = read_records(Path(release), "nvidia", None, allow_unvalidated=True)
    publication = make_publication(records, "huggingface", repo, False, {"README.md": CARD})
    with progress("publish", publication.bytes) as tracker:
        HuggingFace(endpoint, Patience(sleep=lambda _: None)).publish(publication, (), tracker)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One publication in a process of its own, which a test kills: `publish_once.py HUB ENDPOINT RELEASE REPO`."""

from __future__ import annotations

import sys
from pathlib import Path

from flagrelease.console import progress
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.huggingface import HuggingFace
from flagrelease.publish.modelscope import ModelScope
from flagrelease.publish.patience import Patience
from flagrelease.publish.publication import make_publication
from flagrelease.publish.records import read_records

CARDS = {
    "huggingface": b"---\nlicense: mit\n---\n# the card\n",
    "modelscope": b"---\nlicense: MIT License\n---\n# the card\n",
}


def main(hub: str, endpoint: str, release: str, repo: str) -> None:
    records = read_records(Path(release), "nvidia", None, allow_unvalidated=True)
    patience = Patience(sleep=lambda _: None)
    name: Hub = "modelscope" if hub == "modelscope" else "huggingface"
    publication = make_publication(records, name, repo, False, {"README.md": CARDS[name]})
    with progress("publish", publication.bytes) as tracker:
        if name == "modelscope":
            ModelScope(endpoint, patience).publish(publication, tracker)
        else:
            HuggingFace(endpoint, patience).publish(publication, (), tracker)


if __name__ == "__main__":
    main(*sys.argv[1:])

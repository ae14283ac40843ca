"""Benchmark data from a hub on 127.0.0.1, with the hub's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_standin import COMMIT, FILES, DatasetHub, dataset_hub
from scripted_exam import choice_records, choice_rules, write_jsonl

from flagrelease.errors import NetworkError
from flagrelease.validate.exams.exam import read_exam
from flagrelease.validate.exams.hub import download

RULES = choice_rules(files=tuple(FILES), revision="main")


@pytest.fixture
def hub() -> Iterator[str]:
    with dataset_hub() as address:
        yield address


def test_files_come_from_one_commit(hub: str, tmp_path: Path) -> None:
    paths, commit = download(RULES, hub, tmp_path / "cache")
    assert commit == COMMIT
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    exam = read_exam(RULES, paths, commit)
    assert exam.revision == COMMIT
    assert exam.items == read_exam(RULES, [write_jsonl(tmp_path / "own.jsonl", choice_records(2))]).items
    second = [path for path in DatasetHub.asked if path.endswith("1.jsonl")]
    assert all(f"/resolve/{COMMIT}/" in path for path in second)  # "main" may have moved after the first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "someone/gated"}, "access is given by its owners"),
        ({"dataset": "someone/missing"}, "HTTP 404"),
        ({"files": ("data/9.jsonl",)}, r"data/9.jsonl: HTTP 404"),
    ],
)
def test_what_the_hub_does_not_give(hub: str, tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        download(choice_rules(**{"files": tuple(FILES)} | change), hub, tmp_path)


@pytest.mark.slow
def test_no_hub(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"cannot be reached \(ConnectError\); give a file of your own with --data"):
        download(RULES, "http://127.0.0.1:9", tmp_path)

"""Hashing of files and reading of weights at the same time, on the same threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.errors import VerificationError
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import read_source
from flagrelease.verify import integrity
from flagrelease.verify.verify import verify_release
from flagrelease.verify.weights import WeightChecks
from flagrelease.verify.workers import Workers

PATIENCE = 240


def test_weights_are_read_while_a_file_is_still_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file is hashed by one core. The other cores waited for the largest file before a weight was read."""
    write_checkpoint(tmp_path / "source", tiny_config(n_routed_experts=4))
    plan = make_plan(read_source(tmp_path / "source"), [parse_target("bf16:hf")], ConvertSpec())
    convert(plan, tmp_path, workers=1, lookup=cpu_lookup, progress=lambda done: None)
    weight_read, hashed = threading.Event(), integrity._sha256
    check = WeightChecks._check

    def hash_late(path: Path, workers: Workers) -> tuple[int, str]:
        if path.suffix == ".safetensors":
            assert weight_read.wait(PATIENCE), "no weight was read beside the hashing"
        return hashed(path, workers)

    def note(self: WeightChecks, weight: object) -> None:
        check(self, weight)  # type: ignore[arg-type]
        weight_read.set()

    monkeypatch.setattr(integrity, "_sha256", hash_late)
    monkeypatch.setattr(WeightChecks, "_check", note)
    report = verify_release(tmp_path / "bf16-hf", tmp_path / "source", workers=2)
    assert report.passed
    assert report.checks[0].name == "files"


def test_no_more_threads_than_asked_for_and_all_items_are_done() -> None:
    team, threads, done, lock = Workers(3, None), set[int](), list[int](), threading.Lock()

    def work(item: int) -> None:
        with lock:
            threads.add(threading.get_ident())
            done.append(item)

    with team.begun(work, range(100)) as finish:
        team.each(work, range(100, 200))
        finish()
    team.each(work, range(200, 210))
    assert sorted(done) == list(range(210))
    assert len(threads) <= 6  # three of the first pool, three of the last call's


@pytest.mark.parametrize("where", ["begun", "each", "body"])
def test_an_error_anywhere_is_raised(where: str) -> None:
    team, done = Workers(1, None), list[int]()

    def work(item: int) -> None:
        done.append(item)
        if item == (3 if where == "begun" else 103 if where == "each" else -1):
            raise VerificationError("planted")

    def run() -> None:
        with team.begun(work, range(10)) as finish:
            if where == "body":
                raise VerificationError("planted")
            team.each(work, range(100, 110))
            finish()

    with pytest.raises(VerificationError, match="planted"):
        run()

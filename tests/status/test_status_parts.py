"""`flagrelease status` of a conversion that machines share: parts that are finished, begun and missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flagrelease.cli import main
from flagrelease.durable.lock import FileLock
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.status.folder import look_at


def convert(out: Path, *words: str) -> None:
    source = out.with_name("source")
    assert main(["convert", str(source), "--target", "bf16:mp2", "--out", str(out), *words]) == 0


def test_parts_are_shown_until_they_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    write_checkpoint(tmp_path / "source", tiny_config())
    convert(out, "--part", "2/2")
    found = look_at(out)
    assert [(one.part, one.state, one.releases) for one in found.parts] == [
        ("1/2", "missing", ()), ("2/2", "finished", ("bf16-mp2",)),
    ]  # fmt: skip
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    done = found.parts[1].progress
    assert done is not None
    assert (done.written, done.total, done.working) == (size, size, False)

    half = out / "parts" / "1-of-2"  # what a kill leaves of a part: begun, some of it recorded, no record of its end
    shutil.copytree(out / "parts" / "2-of-2", half)
    (half / "done.json").unlink()
    journal = half / "bf16-mp2" / ".flagrelease" / "journal.jsonl"
    states = [line for line in journal.read_text().splitlines() if '"offset"' in line]
    state = json.loads(states[-1])
    journal.write_text(json.dumps(state | {"offset": state["offset"] // 2}) + "\n")
    with FileLock(half / "bf16-mp2" / ".flagrelease" / "lock", half):
        capsys.readouterr()
        assert main(["status", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1/2 bf16-mp2 unfinished" in shown
    assert "(50%) written; a process works on it" in shown
    assert "still to be finished, each by convert --part: 1/2" in shown

    shutil.rmtree(half)
    convert(out, "--part", "1/2")
    assert main(["status", str(out)]) == 0
    assert "all parts are finished: convert --merge makes the releases of them" in capsys.readouterr().out
    convert(out, "--merge")
    merged = look_at(out)
    assert merged.parts == ()
    assert [(one.name, one.conversion) for one in merged.releases] == [("bf16-mp2", "complete")]


def test_other_folders_are_no_parts(tmp_path: Path) -> None:
    for name in ("0-of-3", "1-of-", "1-of-999999", "driver"):
        (tmp_path / "parts" / name).mkdir(parents=True)
    (tmp_path / "parts" / "1-of-2").write_text("a file")
    assert look_at(tmp_path).parts == ()

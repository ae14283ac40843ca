"""The next training step into the same `--out`: equal headers, other weights. It exited 0 and left the old weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import contents, plan_of, run_plan

from flagrelease.errors import ResourceError
from flagrelease.records.manifest import read_manifest
from flagrelease.records.source_identity import identify
from flagrelease.shard.index import open_checkpoint


@pytest.fixture
def next_step(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint after one more step: a value of the final norm is another one."""
    folder = shutil.copytree(checkpoint, tmp_path / "next step")
    meta = open_checkpoint(folder).tensors["norm.weight"]
    with Path(meta.file).open("r+b") as file:
        file.seek(meta.begin)
        byte = file.read(1)[0]
        file.seek(meta.begin)
        file.write(bytes([byte ^ 1]))
    return folder


def test_a_finished_release_of_another_checkpoint_is_not_called_done(
    checkpoint: Path, next_step: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_plan(plan_of(checkpoint, "native:hf"), out)
    before = contents(out)
    with pytest.raises(ResourceError, match=r"finished release of another checkpoint .* another training step"):
        run_plan(plan_of(next_step, "native:hf"), out)
    assert contents(out) == before
    run_plan(plan_of(checkpoint, "native:hf"), out)  # its own source is still "already done"
    assert contents(out) == before


def test_an_unfinished_release_of_another_checkpoint_is_not_gone_on_with(
    checkpoint: Path, next_step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as stop:
        stop.setattr(
            "flagrelease.convert.running.conversion.assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan_of(checkpoint, "native:hf"), out)
    with pytest.raises(ResourceError, match=r"was begun for another checkpoint") as refusal:
        run_plan(plan_of(next_step, "native:hf"), out)
    assert "another plan" not in str(refusal.value)  # it said nothing but that


def test_the_manifest_names_the_checkpoint(checkpoint: Path, next_step: Path, tmp_path: Path) -> None:
    run_plan(plan_of(checkpoint, "native:hf"), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out" / "native-hf")
    assert manifest.schema_version == 2
    assert identify(tmp_path / "out" / "native-hf") == identify(checkpoint) != identify(next_step)
    assert manifest.source.identity == identify(checkpoint).digest

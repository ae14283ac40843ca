"""The folder that a command begins and resumes: killed at every call, locked, and never somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from crashes import Crash, Crashes

from flagrelease.durable.files import write_whole
from flagrelease.durable.folder import WorkFolder
from flagrelease.errors import ResourceError


def open_folder(folder: Path, facts: dict[str, str] | None = None, **binding: str) -> WorkFolder:
    return WorkFolder(folder, "state", "validate", {"release": "r", "chip": "c"} | binding, facts)


def work(folder: Path) -> None:
    with open_folder(folder):
        for name in ("one", "two"):
            if not (folder / name).exists():
                write_whole(folder / name, name.encode())


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_killed_at_every_call_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the binding was written, the folder was refused for ever."""
    crashes = Crashes(monkeypatch)
    work(tmp_path / "undisturbed")
    total, whole = crashes.calls, files(tmp_path / "undisturbed")
    assert {"mkdir", "open", "replace", "fsync"} <= set(crashes.seen)
    for stop_at in range(1, total + 1):
        folder = tmp_path / str(stop_at)
        crashes.arm(stop_at)
        with pytest.raises(Crash):
            work(folder)
        crashes.disarm()
        work(folder)
        assert files(folder) == whole


def test_it_says_whether_it_was_begun_before(tmp_path: Path) -> None:
    with open_folder(tmp_path / "f") as folder:
        assert not folder.resumed
    with open_folder(tmp_path / "f") as folder:
        assert folder.resumed


def test_a_second_user_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        open_folder(tmp_path),
        pytest.raises(ResourceError, match=rf"in use by another flagrelease process \(process {os.getpid()} on "),
    ):
        open_folder(tmp_path)
    open_folder(tmp_path).close()


@pytest.mark.parametrize("name", ["thesis.txt", "state/thesis.txt", ".hidden"])
def test_a_folder_of_somebody_else_is_refused_and_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ResourceError, match=f"was not begun by validate \\(it holds {name}\\)"):
        open_folder(tmp_path)
    assert files(tmp_path) == before
    assert not (tmp_path / "state" / "lock").exists()


def test_another_binding_command_or_fact_is_refused(tmp_path: Path) -> None:
    open_folder(tmp_path, {"torch": "2.13"}).close()
    with pytest.raises(ResourceError, match="was begun for another release and another chip; finish it"):
        open_folder(tmp_path, release="x", chip="y")
    with pytest.raises(ResourceError, match=r"was begun with torch 2\.13, here it is 2\.14: results of both"):
        open_folder(tmp_path, {"torch": "2.14"})
    with pytest.raises(ResourceError, match="was begun by validate"):
        WorkFolder(tmp_path, "state", "convert", {})


def test_facts_are_added_to(tmp_path: Path) -> None:
    open_folder(tmp_path, {"torch": "2.13"}).close()
    open_folder(tmp_path).close()
    with open_folder(tmp_path, {"device": "cpu"}) as folder:
        assert folder.facts == {"torch": "2.13", "device": "cpu"}
    with pytest.raises(ResourceError, match="begun with device cpu"):
        open_folder(tmp_path, {"device": "cuda"})


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b'{"version": 2, "command": "validate", "binding": {}}'])
def test_a_damaged_binding_is_refused(tmp_path: Path, content: bytes) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "state" / "begun.json").write_bytes(content)
    with pytest.raises(ResourceError, match=r"begun\.json: is damaged or was written by another version"):
        open_folder(tmp_path)


def test_the_control_folder_goes_when_all_is_done(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    (tmp_path / "state" / "thesis.txt").write_text("mine")
    with pytest.raises(ResourceError, match=r"state/thesis\.txt: flagrelease did not write this; move it away"):
        folder.remove_control(())
    (tmp_path / "state" / "thesis.txt").unlink()
    folder.remove_control(())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(ResourceError, match="is not a folder"):
        open_folder(tmp_path / "f")


def test_a_whole_file_that_fails_gives_its_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk left of the temporary file stayed there and kept the disk full."""

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_whole(tmp_path / "f", b"x" * 100)
    assert list(tmp_path.iterdir()) == []

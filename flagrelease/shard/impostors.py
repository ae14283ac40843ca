"""What stands in place of a file: a git-lfs pointer, or the web page that a failed download left behind.

Both are small texts under the right name. Everything that opens a file of a checkpoint asks here when the file is not
what its name says, so that people read what it is and not which rule of the expected format it breaks first.
"""

from __future__ import annotations

from pathlib import Path, PurePath

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
PEEK_BYTES = 512


def impostor(head: bytes, path: PurePath) -> str | None:
    """What the file at `path` really is, which begins with `head`, and what to do about it, as a clause.

    None if it is neither; a page that is named as one (.html, .htm) is what it says.
    """
    if head.startswith(_POINTER):
        return "a git-lfs pointer, not the file itself: run `git lfs pull` in the checkpoint"
    page = head[:PEEK_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES)
    if page and path.suffix.lower() not in (".html", ".htm"):
        return "a web page, not the file itself: the download answered with an error page, so download it again"
    return None


def impostor_in(path: Path) -> str | None:
    """Like `impostor`, of the file at `path`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return impostor(file.read(PEEK_BYTES), path)

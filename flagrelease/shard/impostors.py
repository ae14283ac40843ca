"""What stands in place of a file: a git-lfs pointer, or the web page that a failed download left behind.

Both are small texts under the right name. Everything that opens a file of a checkpoint asks here when the file is not
what its name says, so that people read what it is and not which rule of the expected format it breaks first.
"""

from __future__ import annotations

from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
_PEEK_BYTES = 512


def impostor(head: bytes) -> str | None:
    """What a file that begins with `head` really is and what to do about it, as a clause; None if it is neither."""
    if head.startswith(_POINTER):
        return "a git-lfs pointer, not the file itself: run `git lfs pull` in the checkpoint"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return "a web page, not the file itself: the download answered with an error page, so download it again"
    return None


def impostor_in(path: Path) -> str | None:
    """Like `impostor`, of the file at `path`; a page that is named as one (.html, .htm) is what it says.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        found = impostor(file.read(_PEEK_BYTES))
    if found is not None and found.startswith("a web page") and path.suffix.lower() in (".html", ".htm"):
        return None
    return found

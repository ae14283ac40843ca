"""`CommandPlace`: files are moved by one command of the user's, and another one says what is there.

Neither runs in a shell. The second prints the SHA-256 of a file as sha256sum does; a file is there if the command ends
with 0 and prints the digest that the file had here. The first command's own exit code is not enough: it may have copied
half a file in an earlier run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish.publication import PublishedFile
from flagrelease.publish.staging.place import Staged, require_whole
from flagrelease.records.manifest import MANIFEST_NAME

HAND_OVER, CHECK = "--hand-over", "--hand-over-check"


class CommandPlace:
    """Where one release goes by commands."""

    def __init__(self, staged: Staged, hand_over: Sequence[str], check: Sequence[str]) -> None:
        """The commands are words in which {file}, {name}, {release} and {plan} stand for what they say."""
        self._staged, self._hand_over, self._check = staged, hand_over, check
        self._begun = False

    @property
    def address(self) -> str:
        """The command, with what is the same for every file."""
        return " ".join(self._words(self._hand_over, {}))

    def whole(self, files: Sequence[PublishedFile]) -> set[str]:
        """Those of which the check prints the digest."""
        return {file.path for file in files if self._digest(file.path) == file.sha256}

    def send(self, files: Sequence[PublishedFile]) -> None:
        """One command a file, then the check.

        Raises:
            VerificationError: the check does not print the digest; or a manifest lies there already.
            NetworkError: the command cannot be run or ends with another code than 0.
        """
        if not self._begun and self._digest(MANIFEST_NAME) is not None:
            raise VerificationError(
                f"{CHECK}: there is a {MANIFEST_NAME} already, so what lies there looks whole while files are sent; "
                "remove it, or name another place ({plan} in a path differs for every plan)"
            )
        self._begun = True
        self._send(files)

    def complete(self, files: Sequence[PublishedFile]) -> None:
        """The documents that are not there, then the manifest. What else lies there is the user's business."""
        ordered = sorted(files, key=lambda file: (file.path == MANIFEST_NAME, file.path))
        tensors = [file for file in ordered if file.path in self._staged.names]
        require_whole(self, tensors)
        documents = [file for file in ordered if file.path not in self._staged.names]
        there = self.whole(documents)
        for file in documents:
            if file.path not in there:
                self._send([file])

    def _send(self, files: Sequence[PublishedFile]) -> None:
        for file in files:
            with ExitStack() as stack:
                if isinstance(file.origin, bytes):
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flagrelease-"))
                    path = Path(folder, Path(file.path).name)
                    path.write_bytes(file.origin)
                else:
                    path = file.origin
                words = self._words(self._hand_over, {"file": str(path), "name": file.path})
                done = _run(HAND_OVER, words)
            if done.returncode != 0:
                raise NetworkError(
                    f"{HAND_OVER}: `{shlex.join(words)}` ended with exit code {done.returncode}{_last_words(done)}. "
                    "Run the same command again to resume"
                )
        require_whole(self, files)

    def _digest(self, name: str) -> str | None:
        """What the check prints of a file; None if it says that there is none."""
        done = _run(CHECK, self._words(self._check, {"name": name}))
        said = done.stdout.split()
        return said[0].lower().removeprefix("\\") if done.returncode == 0 and said else None

    def _words(self, command: Sequence[str], values: Mapping[str, str]) -> list[str]:
        known = {"release": self._staged.folder, "plan": self._staged.plan[:12], **values}
        return [_filled(word, known) for word in command]


def parse_commands(hand_over: str, check: str, releases: int) -> tuple[list[str], list[str]]:
    """The words of both commands.

    Raises:
        UsageError: a program is not on this machine, or a command does not say which file it is about.
    """
    parsed = []
    for option, text, needed in (
        (HAND_OVER, hand_over, ["{file}", "{name}"]),
        (CHECK, check, ["{name}"]),
    ):
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"{option} {text!r}: {error}") from error
        if not words or shutil.which(words[0]) is None:
            raise UsageError(f"{option} {text!r}: no such program on this machine")
        for name in [*needed, *(["{release}"] if releases > 1 else [])]:
            if not any(name in word for word in words):
                raise UsageError(f"{option} {text!r}: has no {name}, so it would mean the same for several files")
        parsed.append(words)
    return parsed[0], parsed[1]


def _filled(word: str, values: Mapping[str, str]) -> str:
    """One pass: what a value says is not filled in again."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), word)


def _run(option: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise NetworkError(f"{option}: {words[0]} cannot be run ({error.strerror})") from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f": {lines[-1]}" if lines else ""

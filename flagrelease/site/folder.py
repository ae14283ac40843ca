"""Finds what an output folder holds: releases, publications, validations, former records, nights.

`run --out` makes one such folder (docs/run.md); a folder of several, such as one for each model, is read as well.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flagrelease.errors import ResourceError, UsageError
from flagrelease.publish.hubs.names import REPORT_NAME, STATEMENT_NAME
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.records.night import HISTORY, NIGHTS

MARK = "flagrelease-site.json"  # says that a folder is a site, which is written anew, and not read
_VALIDATION = "validation"
_RECORDS = frozenset({_VALIDATION, HISTORY, NIGHTS, "baseline", "records"})
_DEEPEST = 4  # below the folder that was named


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """One output of `run` or `convert`.

    Attributes:
        path: where it is; `name` is its path below the folder that was named, `` if it is that folder.
        releases: folders with a manifest.
        nights: records of runs, by time.
    """

    path: Path
    name: str
    releases: tuple[Path, ...]
    nights: tuple[Path, ...]

    def named(self, release: str) -> str:
        """A release's name in the whole site."""
        return f"{self.name}/{release}" if self.name else release

    def report(self, release: str, chip: str) -> Path:
        """Where validate leaves the report of a release on a chip."""
        return self.path / _VALIDATION / f"{release}-{chip}" / REPORT_NAME

    def validated_chips(self, release: str) -> list[str]:
        """Chips for which there is a report of the release, by the names of the folders."""
        others = [path.name for path in self.releases if path.name.startswith(f"{release}-")]
        found = []
        for path in sorted((self.path / _VALIDATION).glob(f"{glob.escape(release)}-*/{REPORT_NAME}")):
            name = path.parent.name
            if not any(name.startswith(f"{other}-") for other in others):
                found.append(name.removeprefix(f"{release}-"))
        return found

    def reports(self) -> Iterator[Path]:
        """Every report: those that stand, and those that a run has put aside."""
        yield from sorted((self.path / _VALIDATION).glob(f"*/{REPORT_NAME}"))
        yield from sorted((self.path / HISTORY).glob(f"*/*/{REPORT_NAME}"))

    def manifests(self) -> Iterator[Path]:
        """Every manifest: of the releases, and those that a run has put aside."""
        yield from (release / MANIFEST_NAME for release in self.releases)
        yield from sorted((self.path / HISTORY).glob(f"*/*/{MANIFEST_NAME}"))


@dataclass(frozen=True, slots=True)
class Found:
    """Everything below a folder, in the order of the names.

    Attributes:
        linked: links to folders, and to what is not there; they are not followed.
    """

    root: Path
    outputs: tuple[OutputFolder, ...]
    publications: tuple[Path, ...]
    linked: tuple[Path, ...]

    def leads_out(self, path: Path) -> bool:
        """Whether a file is a link that leads out of the folder: the site may be shown to others, so it is not copied.

        A whole folder, such as `validation`, may be on another disk.
        """
        place = path.resolve()
        return not any(place.is_relative_to(folder.resolve()) for folder in (self.root, path.parent))


def find(root: Path) -> Found:
    """Look through `root`.

    Raises:
        UsageError: it is no folder, or holds no release and no record of a night.
        ResourceError: a folder cannot be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    outputs: list[OutputFolder] = []
    publications: list[Path] = []
    linked: list[Path] = []
    try:
        _look(root, root, 0, outputs, publications, linked)
    except OSError as error:
        raise ResourceError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    if not outputs:
        links = f"; {linked[0].relative_to(root)} is a link, which is not followed" if linked else ""
        raise UsageError(
            f"{root}: no release and no record of a night in it{links}; name the --out folder of run or convert"
        )
    return Found(root, tuple(outputs), tuple(publications), tuple(linked))


def digest_of(path: Path) -> str:
    """SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _look(
    root: Path,
    folder: Path,
    depth: int,
    outputs: list[OutputFolder],
    publications: list[Path],
    linked: list[Path],
) -> None:
    releases: list[Path] = []
    inner: list[Path] = []
    for path in sorted(folder.iterdir()):
        gone = path.is_symlink() and not path.exists()  # such as a release on a disk that is not there
        if path.name.startswith(".") or not (gone or path.is_dir()) or (path / MARK).exists():
            continue
        if path.is_symlink():
            if gone or path.name not in _RECORDS:  # those are read where they are
                linked.append(path)
        elif (path / MANIFEST_NAME).is_file():
            (publications if (path / STATEMENT_NAME).is_file() else releases).append(path)
        elif path.name not in _RECORDS:
            inner.append(path)
    nights = tuple(sorted((folder / NIGHTS).glob("*.json")))
    if releases or nights:
        name = "" if folder == root else folder.relative_to(root).as_posix()
        outputs.append(OutputFolder(folder, name, tuple(releases), nights))
    if depth < _DEEPEST:
        for path in inner:
            _look(root, path, depth + 1, outputs, publications, linked)

"""Which releases are compared, and the pages of it: what changed from night to night, and pairs that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.diff.compare import compare
from flagrelease.diff.operand import Operand, read_operand
from flagrelease.diff.words import summary
from flagrelease.errors import VerificationError
from flagrelease.records.night import read_night
from flagrelease.site.compared import ComparedPair
from flagrelease.site.difference_page import overview, sections
from flagrelease.site.folder import OutputFolder, digest_of
from flagrelease.site.render import Renderer
from flagrelease.site.site_folder import SiteFolder


@dataclass(slots=True)
class Comparisons:
    """Compares and writes. `by_digest` has every comparison by the digests of the two manifests."""

    folder: SiteFolder
    renderer: Renderer
    troubles: list[str]
    by_digest: dict[tuple[str, str], ComparedPair] = field(default_factory=dict)

    def nightly(self, output: OutputFolder, nights: int) -> None:
        """Compare what each of the last `nights` nights made again with what was there before."""
        paths: dict[str, Path] = {}
        for path in output.manifests():
            paths.setdefault(digest_of(path), path)
        for release, changes in _changes(output, nights).items():
            last: tuple[str, Operand] | None = None
            for old, new in changes:
                if old not in paths or new not in paths:
                    continue  # the page of the night says that the former manifest was not kept
                try:
                    before = last[1] if last is not None and last[0] == old else _read(paths[old], output, release)
                    after = _read(paths[new], output, release)
                except VerificationError as error:
                    self.troubles.append(str(error))
                    continue
                last = (new, after)
                if (old, new) not in self.by_digest:
                    self._write(f"{output.named(release)}: {old[:12]} to {new[:12]}", before, after)

    def asked(self, pair: tuple[str, str], known: dict[str, Path]) -> None:
        """Compare two releases by their names in the site, or by their paths.

        Raises:
            UsageError: there is no such release.
            VerificationError: it has no manifest that can be read.
        """
        before, after = (read_operand(known.get(name, Path(name)), name) for name in pair)
        self._write(f"{pair[0]} and {pair[1]}", before, after)

    def _write(self, title: str, before: Operand, after: Operand) -> None:
        found = compare(before, after)
        page = f"diffs/{before.manifest_sha256[:12]}-{after.manifest_sha256[:12]}.html"
        configs = tuple(one.path for one in found.files if one.role in ("config", "tokenizer"))
        pair = ComparedPair(title, page, summary(found), configs)
        content = self.renderer.page(
            "difference.html.jinja", page, pair=pair, found=found, overview=overview(found), sections=sections(found)
        )
        self.folder.add(page, content)
        self.by_digest[(before.manifest_sha256, after.manifest_sha256)] = pair


def _read(path: Path, output: OutputFolder, release: str) -> Operand:
    """The release of that name as it is now, with its documents, or as a manifest that was put aside says it was."""
    now = path.parent in output.releases
    return read_operand(path, output.named(release) if now else f"{output.named(release)} of before")


def _changes(output: OutputFolder, nights: int) -> dict[str, list[tuple[str, str]]]:
    """Release -> the pairs of digests that its manifest had before and after a night, in the order of the nights."""
    changes: dict[str, list[tuple[str, str]]] = {}
    last: dict[str, str] = {}
    asked = set(output.nights[-nights:])
    for path, made in _made(output.nights):
        for release, sha256 in made.items():
            if last.get(release, sha256) != sha256 and path in asked:
                changes.setdefault(release, []).append((last[release], sha256))
        last |= made
    return changes


def _made(nights: Sequence[Path]) -> Iterator[tuple[Path, dict[str, str]]]:
    for path in nights:
        try:
            night = read_night(path)
        except VerificationError:  # the page of the nights says why
            continue
        yield path, {one.release: one.manifest_sha256 for one in night.chips if one.manifest_sha256 is not None}

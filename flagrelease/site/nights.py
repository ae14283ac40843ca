"""Runs, night after night, as the site shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from flagrelease.records.night import Night, NightChip, NightStep
from flagrelease.site.folder import OutputFolder

_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)\d\d(?:\.\d+)?Z")


@dataclass(frozen=True, slots=True)
class NightNews:
    """One thing that changed.

    Attributes:
        kind: `verdict`, `weights`, `config`, `limit`, `measure`, `machine`, `step`, `release` or `run`.
        link: a page of the site, from its root.
    """

    kind: str
    words: str
    link: str | None = None


@dataclass(frozen=True, slots=True)
class NightRow:
    """One release of one chip in one night.

    Attributes:
        before: by stage, the last time before that the stage was really done.
    """

    entry: NightChip
    news: tuple[NightNews, ...]
    before: Mapping[str, NightStep]

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return sum(step.seconds for step in self.entry.steps.values())


@dataclass(frozen=True, slots=True)
class NightPage:
    """A night as the site shows it.

    Attributes:
        name: the record's file, without its ending: a time that sorts.
        night: None if the record cannot be read; `trouble` says why.
        news: of the run as a whole; the rows have their own.
        missing: (chip, release) of the night before that this one does not have.
    """

    output: OutputFolder
    name: str
    night: Night | None
    trouble: str | None = None
    news: tuple[NightNews, ...] = ()
    rows: tuple[NightRow, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def when(self) -> str:
        """Its time for readers: `2026-11-03 22:00 UTC`; the name where that is no time."""
        found = _TIME.fullmatch(self.name)
        return self.name if found is None else "{}-{}-{} {}:{} UTC".format(*found.groups())

    @property
    def key(self) -> tuple[str, str]:
        """Which night of which output folder."""
        return self.output.name, self.name

    @property
    def all_news(self) -> list[tuple[str, NightNews]]:
        """(whom it is about, what) of everything that changed."""
        rows = [(f"{row.entry.release} on {row.entry.chip}", news) for row in self.rows for news in row.news]
        return [("the run", news) for news in self.news] + rows

    @property
    def seconds(self) -> float | None:
        """From its beginning to its end; None without an end."""
        if self.night is None or self.night.ended is None:
            return None
        try:
            began, ended = map(_moment, (self.night.began, self.night.ended))
        except ValueError:  # a record may hold anything there
            return None
        return max(0.0, (ended - began).total_seconds())

    def count(self, verdict: str | None) -> int:
        """How many of its rows have this verdict."""
        return sum(row.entry.verdict == verdict for row in self.rows)


def proved_by(pages: Sequence[NightPage], release: str, chip: str, manifest_sha256: str) -> NightPage | None:
    """The last night, if its `verify` says that the weights of this manifest are those of the source."""
    last = last_readable(pages)
    for row in () if last is None else last.rows:
        entry = row.entry
        same = (entry.release, entry.chip, entry.manifest_sha256) == (release, chip, manifest_sha256)
        if same and (step := entry.steps.get("verify")) is not None and step.status == "done":
            return last
    return None


def last_readable(pages: Sequence[NightPage]) -> NightPage | None:
    """The last night that can be read."""
    return next((page for page in reversed(pages) if page.night is not None), None)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=timezone.utc)

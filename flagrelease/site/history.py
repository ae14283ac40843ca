"""What the nights changed of one release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagrelease.site.nights import NightNews, NightPage
from flagrelease.site.nights_page import night_page

_MOST = 30  # changes that a release's page lists


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What a night changed of a release on a chip; `link` is the night's page, None where it has none."""

    page: NightPage
    link: str | None
    chip: str
    news: tuple[NightNews, ...]


def history(nights: Sequence[NightPage], release: str, most: int) -> tuple[list[HistoryEntry], int]:
    """The changes, the last one first, and how many older ones are left out.

    Args:
        nights: of the output folder, the first one first.
        release: the name of its folder.
        most: nights that have a page: the last ones.
    """
    linked = {page.key for page in nights[-most:]}
    found = [
        HistoryEntry(page, night_page(page) if page.key in linked else None, row.entry.chip, row.news)
        for page in reversed(nights)
        for row in page.rows
        if row.entry.release == release and row.news
    ]
    return found[:_MOST], max(0, len(found) - _MOST)

"""The pages of the nights: one for each of the last, and one that lists all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flagrelease.console import human_duration
from flagrelease.page.panel import Picture
from flagrelease.site.names import page_name
from flagrelease.site.nights import NightPage
from flagrelease.site.plot import NightBar, duration_plot
from flagrelease.site.render import Renderer
from flagrelease.site.site_folder import SiteFolder
from flagrelease.site.states import tone

NIGHTS_PAGE = "nights/index.html"


def night_page(page: NightPage) -> str:
    """Where the page of a night is."""
    name = page_name(page.output.name, page.name) if page.output.name else page_name(page.name)
    return f"nights/{name}.html"


def write_nights(folder: SiteFolder, renderer: Renderer, nights: Sequence[NightPage], most: int) -> None:
    """Write the list of all nights, and a page for each of the last `most` of each output folder."""
    places: dict[tuple[str, str], str] = {}
    for own in _by_output(nights):
        shown = [one for one in own[-most:] if one.night is not None]
        places |= {one.key: night_page(one) for one in shown}
        for number, one in enumerate(shown):
            near = [*shown[max(0, number - 1) : number], *shown[number + 1 : number + 2]]
            links = [(other, places[other.key]) for other in near]
            content = renderer.page("night.html.jinja", places[one.key], page=one, night=one.night, near=links)
            folder.add(places[one.key], content)
    listed = [(one, places.get(one.key)) for one in reversed(nights)]
    pictures = _pictures(nights)
    folder.add(NIGHTS_PAGE, renderer.page("nights.html.jinja", NIGHTS_PAGE, nights=listed, pictures=pictures))


def _by_output(nights: Sequence[NightPage]) -> list[list[NightPage]]:
    own: dict[str, list[NightPage]] = {}
    for one in nights:
        own.setdefault(one.output.name, []).append(one)
    return list(own.values())


def _pictures(nights: Sequence[NightPage]) -> list[tuple[str, Picture, str]]:
    """(output folder, picture, the picture in words) for each output folder with a night that ended."""
    pictures: list[tuple[str, Picture, str]] = []
    for own in _by_output(nights):
        ended = [one.seconds for one in own if one.seconds is not None]
        if not ended:
            continue
        words = (
            f"{len(own)} nights from {own[0].when} to {own[-1].when}, {len(own) - len(ended)} of them without an end. "
            f"The last that ended took {human_duration(ended[-1])}, the longest {human_duration(max(ended))}, the "
            f"shortest {human_duration(min(ended))}."
        )
        bars = [NightBar(one.when, one.seconds, tone(one.night.verdict if one.night else "unreadable")) for one in own]
        picture = Picture.of(partial(duration_plot, f"nights-{len(pictures)}", bars, words))
        pictures.append((own[0].output.name, picture, words))
    return pictures

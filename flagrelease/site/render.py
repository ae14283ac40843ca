"""Renders the pages: every name from a record is escaped as HTML, and what it would not draw is written out."""

from __future__ import annotations

from flagrelease import __version__, console
from flagrelease.page.template import Templates, style
from flagrelease.site.states import MEANINGS, SIGNS, WORDS, tone


class Renderer:
    """Fills in the templates of the site."""

    def __init__(self) -> None:
        """Load the style, which every page holds: a page can be sent alone."""
        self._templates = Templates("flagrelease.site", _shown)
        self._style = style(("flagrelease.site", "site.css"))

    def page(self, template: str, path: str, **values: object) -> bytes:
        """The page at `path`, which is below the root of the site, as bytes."""
        return self._templates.render(
            template,
            style=self._style,
            root="../" * path.count("/"),
            words=WORDS,
            signs=SIGNS,
            meanings=MEANINGS,
            tone=tone,
            size=console.human_bytes,
            duration=console.human_duration,
            version=__version__,
            **values,
        ).encode("utf-8", "replace")


def _shown(value: object) -> object:
    """What a template shows of a value: text from records without letters that draw nothing or turn the line around."""
    return console.printable(value) if type(value) is str else value

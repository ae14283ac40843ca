"""`Templates`: Jinja templates in which every value is escaped, with the parts and the style that all pages share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup


class Templates:
    """The templates of one part of the package.

    In a template `{% from "page/parts.html.jinja" import badge, table with context %}` gives the shared macros, which
    need `words`: a verdict's id -> how it is written.
    """

    def __init__(self, package: str, finalize: Callable[[object], object] | None = None) -> None:
        """`package` is where they are, such as `flagrelease.validate.page`; `finalize` changes every value shown."""
        self._package = package
        loader = PrefixLoader({"page": PackageLoader("flagrelease.page", ""), "own": PackageLoader(package, "")})
        self._environment = Environment(
            loader=loader,
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            keep_trailing_newline=True,
            finalize=finalize,
        )
        self._environment.tests["mono"] = lambda value: len(value) >= 40 and " " not in value

    def render(self, name: str, **values: object) -> str:
        """The template `name` of the package, filled in."""
        return self._environment.get_template(f"own/{name}").render(values)


def style(*more: tuple[str, str]) -> Markup:
    """The CSS of all pages, and behind it the files `more`: (package, name)."""
    return Markup("").join(map(_text, [("flagrelease.page", "report.css"), *more]))


def _text(place: tuple[str, str]) -> Markup:
    package, name = place
    return Markup(resources.files(package).joinpath(name).read_text(encoding="utf-8"))

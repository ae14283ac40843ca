"""Cards as HTML: Markdown in which no markup, picture or script is taken over, whatever a record holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup


def card_parts(text: str) -> tuple[str, Markup]:
    """The metadata at the top of a card (YAML, as it stands there) and the rest as HTML.

    Headings go one level down, since the page has its own first heading. HTML inside the text is shown as text, and
    pictures are left out: they would be fetched from a network.
    """
    metadata = ""
    if text.startswith("---\n") and (end := text.find("\n---\n", 4)) > 0:
        metadata, text = text[4:end], text[end + 5 :]
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        if token.type == "th_open":
            token.attrSet("scope", "col")
    return metadata, Markup(parser.renderer.render(tokens, parser.options, {}))


def _table_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<div class="table" tabindex="0" role="group" aria-label="Table"><table>\n'


def _table_close(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"

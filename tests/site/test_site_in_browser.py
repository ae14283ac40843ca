"""The site in a real browser: fits, is quiet, can be read, and can be used by keyboard and by a screen reader.

On a machine without Chromium these tests are reported as not run, never as passed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_site
import pytest
from browser import Browser
from test_page_in_browser import CONTRAST
from test_site import hostile, make

# Text that leaves the window on the right, unless it is inside something that scrolls by itself.
OUTSIDE = r"""
[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.table, pre, .skip, .hidden, svg')) return false;
  const r = e.getBoundingClientRect();
  return r.width > 0 && r.right > document.documentElement.clientWidth + 0.5;
}).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))
"""
# Pairs of elements with text of their own that are painted over each other.
OVERLAPS = r"""
(() => {
  const texts = e => [...e.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
  const range = document.createRange();
  const rects = n => { range.selectNodeContents(n); return [...range.getClientRects()]; };
  const shown = e => !e.closest('svg, .skip, .hidden, details:not([open])') && texts(e).length;
  const boxes = [...document.querySelectorAll('body *')].filter(shown).map(e => [e, texts(e).flatMap(rects)]);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
  const clash = [];
  boxes.forEach(([e, own], i) => boxes.slice(i + 1).forEach(([f, others]) => {
    if (own.some(a => others.some(b => meet(a, b))))
      clash.push(e.textContent.slice(0, 30) + ' / ' + f.textContent.slice(0, 30));
  }));
  return clash;
})()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, and the first page of a site whose records hold whatever a record may hold."""
    folder = tmp_path_factory.mktemp("site")
    made_site.week(folder / "week")
    of = (folder / "week" / "bf16-mp16" / "manifest.json").read_bytes()
    made_site.Output(folder / "week").report(made_site.report(made_site.sha256(of), "metax"), "bf16-mp16")
    make(folder / "week", pairs=(("fp8-hf", "bf16-mp16"),))
    hostile(folder / "hostile")
    make(folder / "hostile")
    week, other = folder / "week" / "site", folder / "hostile" / "site"
    return {
        "index": week / "index.html",
        "release": week / "releases" / "fp8-hf.html",
        "nights": week / "nights" / "index.html",
        "night": week / "nights" / "20261103T220000Z.html",
        "comparison": next((week / "diffs").iterdir()),
        "card": next((week / "cards").iterdir()),
        "hostile index": other / "index.html",
        "hostile release": next((other / "releases").iterdir()),
        "hostile night": other / "nights" / "20261102T220000Z.html",
    }


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_fits_is_quiet_and_can_be_read(
    browser: Browser, site: dict[str, Path], width: int, scheme: str
) -> None:
    for name, page in site.items():
        browser.show(page, width, scheme)
        assert browser.requests() == [page.as_uri()], name
        assert browser.complaints() == [], name
        assert browser.ask("document.documentElement.scrollWidth") == width, name
        assert browser.ask(OUTSIDE) == [], name
        assert browser.ask(OVERLAPS) == [], name
        contrast = browser.ask(CONTRAST)
        assert contrast["seen"] > 15, name
        assert contrast["found"] == [], name
        assert browser.ask("window.broken === undefined") is True, name


def test_the_checks_see_what_they_are_for(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<meta name="viewport" content="width=device-width"><p style="margin:0">one line</p>'
        '<p style="margin:-1.1em 0 0">another line</p><p style="width:3000px">wide</p>'
    )
    browser.show(bad, 1280)
    assert browser.ask(OUTSIDE) == ["P wide"]
    assert browser.ask(OVERLAPS) == ["one line / another line"]


def test_the_whole_matrix_of_eight_chips_is_seen_at_once(browser: Browser, tmp_path: Path) -> None:
    out = made_site.Output(tmp_path)
    of = out.release(made_site.manifest())
    for chip in ("nvidia", "ascend", "hygon", "metax", "mthreads", "kunlunxin", "zhenwu", "iluvatar"):
        out.report(made_site.report(of, chip, {"logits": "not-informative"}))
    make(tmp_path)
    browser.show(tmp_path / "site" / "index.html", 1280)
    hidden = browser.ask("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.matrix'))")
    assert hidden <= 0


def key(browser: Browser, name: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if name == "Enter" and kind == "keyDown" else {}
        browser.do("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **text)


def test_a_keyboard_reaches_the_content_and_every_link_in_order(browser: Browser, site: dict[str, Path]) -> None:
    browser.show(site["index"], 1280)
    key(browser, "Tab", 9)
    assert browser.ask("document.activeElement.className") == "skip"
    assert browser.ask("document.activeElement.getBoundingClientRect().left") >= 0, "seen when it has the focus"
    assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    key(browser, "Enter", 13)
    assert browser.ask("document.activeElement.id") == "main"
    reached = []
    for _ in range(40):
        key(browser, "Tab", 9)
        reached.append(browser.ask("document.activeElement.getAttribute('href') || document.activeElement.className"))
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") in ("solid", "auto")
        if reached[-1].startswith("diffs/"):
            break
    assert "table matrix" in reached, "what scrolls can be scrolled by keys"
    assert "releases/fp8-hf.html" in reached
    assert reached[-1].startswith("diffs/")


def named(tree: list[dict[str, Any]], *roles: str) -> list[str]:
    """The names of what a screen reader is told, by role."""
    return [
        node.get("name", {}).get("value", "")
        for node in tree
        if not node["ignored"] and node.get("role", {}).get("value") in roles
    ]


def test_a_screen_reader_is_told_what_everything_is(browser: Browser, site: dict[str, Path]) -> None:
    browser.show(site["index"], 1280)
    tree = browser.do("Accessibility.getFullAXTree")["nodes"]
    assert all(named(tree, "table"))
    assert named(tree, "rowheader") == ["bf16-mp16", "fp8-hf", "int8-hf"]
    assert "nvidia" in named(tree, "columnheader")
    links = named(tree, "link")
    assert all(links)
    assert any("Fail report of fp8-hf on nvidia" in link for link in links)
    assert len(named(tree, "main")) == 1
    assert {"Site", "On this page"} <= set(named(tree, "navigation"))
    browser.show(site["nights"], 1280)
    tree = browser.do("Accessibility.getFullAXTree")["nodes"]
    (picture,) = named(tree, "image", "img")
    assert picture.startswith("How long each night took 3 nights from 2026-11-01")
    assert browser.ask("document.documentElement.lang") == "en"


def test_on_paper_it_is_white_and_nothing_is_cut(browser: Browser, site: dict[str, Path]) -> None:
    browser.show(site["release"], 1280, "dark", "print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.querySelector('.way')).display") == "none"
    hidden = (
        "[...document.querySelectorAll('details table')].filter(e => !e.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert browser.ask(f"{hidden}.length") == 0
    assert browser.ask(CONTRAST)["found"] == []
    assert browser.paper().startswith(b"%PDF")

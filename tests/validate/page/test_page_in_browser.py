"""The page in a real browser, without a window: what it shows in light, in the dark, on a telephone and on paper.

On a machine without Chromium these tests are reported as not run, never as passed.
"""

from __future__ import annotations

from pathlib import Path

import made_up
import made_up_served
import pytest
from browser import Browser
from test_page import HOSTILE

from flagrelease.validate.page.page import render_page

# Own text of each element against what is painted behind it (WCAG 2.2): [ratio, text] of all below 4.5.
CONTRAST = r"""
(() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number), of = c.startsWith('color(') ? 255 : 1;
    return [m[0] * of, m[1] * of, m[2] * of, m.length > 3 ? m[3] : 1]; };
  const lum = c => { const f = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c; } return parse(getComputedStyle(document.body).backgroundColor); };
  const found = []; let seen = 0;
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].filter(n => n.nodeType === 3 && n.data.trim()).map(n => n.data.trim()).join(' ');
    if (!own || ['TITLE', 'title', 'desc', 'STYLE'].includes(e.tagName) || !e.checkVisibility()) continue;
    const svg = e instanceof SVGElement, style = getComputedStyle(e);
    const ink = parse(svg ? style.fill : style.color);
    let under = e.previousElementSibling;
    while (under && under.tagName === 'text') under = under.previousElementSibling;
    const wash = svg && e.classList.contains('on') ? parse(getComputedStyle(under).fill) : behind(e);
    const [a, b] = [lum(ink), lum(wash)].sort((x, y) => y - x); seen++;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([ratio.toFixed(2), own.slice(0, 40)]);
  }
  return {seen, found};
})()
"""

SHOWN = "[...document.querySelectorAll('.plot svg')].filter(e => e.checkVisibility())"
# Of all text that is shown: what another text lies over, what sticks out of its picture, and boxes one must scroll.
LAYOUT = r"""
(() => {
  const boxes = [], cut = [], over = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility({contentVisibilityAuto: true})) continue;
    if (['STYLE', 'TITLE', 'title', 'desc'].includes(parent.tagName)) continue;
    const range = document.createRange(); range.selectNodeContents(node);
    const svg = parent.closest('svg'), frame = svg && svg.getBoundingClientRect();
    for (const r of range.getClientRects()) {
      if (r.width < 1) continue;
      const box = {l: r.left, r: r.right, t: r.top + 2, b: r.bottom - 2, text: node.data.trim().slice(0, 30), node};
      boxes.push(box);
      if (frame && (r.left < frame.left - 1 || r.right > frame.right + 1 || r.bottom > frame.bottom + 3))
        cut.push(box.text);
      if (r.left < -0.5 || r.right > innerWidth + 0.5) cut.push(box.text);
    }
  }
  boxes.sort((x, y) => x.t - y.t);
  for (let i = 0; i < boxes.length; i++)
    for (let j = i + 1; j < boxes.length && boxes[j].t < boxes[i].b; j++)
      if (boxes[i].node !== boxes[j].node && boxes[i].l < boxes[j].r - 1 && boxes[j].l < boxes[i].r - 1)
        over.push(boxes[i].text + ' | ' + boxes[j].text);
  const shown = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !(e instanceof SVGElement));
  const scrolled = shown.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
    .map(e => e.tagName + '.' + e.className);
  return {seen: boxes.length, cut, over, scrolled};
})()
"""
OPEN_ALL = "document.querySelectorAll('details').forEach(each => { each.open = true; })"


REPORTS = {
    "passing": made_up.passing, "failing": made_up.failing, "without a device": made_up.without_device,
    "served": made_up_served.served,
}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in REPORTS.items():
        (folder / f"{name}.html").write_text(render_page(make(), made_up.manifest()), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in REPORTS}


@pytest.fixture(scope="module")
def page(pages: dict[str, Path]) -> Path:
    return pages["passing"]


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (390, "light"), (320, "dark")])
def test_it_is_quiet_and_fits(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.show(page, width, scheme)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.ask("document.documentElement.scrollWidth") == width
    top = browser.ask("document.querySelector('.verdict .word').getBoundingClientRect().top")
    assert 0 < top < 400, "the verdict is what one sees first"
    blank = [
        each for each in browser.ask(f"{SHOWN}.map(e => e.getBBox().height)") if not each > 30
    ]  # fmt: skip
    assert blank == []


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize(("width", "media"), [(1280, "screen"), (390, "screen"), (688, "print")])
def test_nothing_is_cut_and_no_text_lies_over_another(
    browser: Browser, pages: dict[str, Path], name: str, width: int, media: str
) -> None:
    """With every folded table open. 688 pixels are what A4 leaves between its margins."""
    browser.show(pages[name], width, media=media)
    browser.ask(OPEN_ALL)
    found = browser.ask(LAYOUT)
    assert found["seen"] > 100
    assert (found["cut"], found["over"], found["scrolled"]) == ([], [], [])


def test_the_layout_check_sees_what_is_cut_and_what_collides(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body><svg width="200" height="60"><text x="0" y="20">a limit</text><text x="20" y="22">a mean</text>'
        '<text x="190" y="50">cut off here</text></svg>'
        '<div style="width:9em;overflow:auto"><p style="width:20em">x</p></div>'
    )
    browser.show(bad, 390)
    found = browser.ask(LAYOUT)
    assert found["over"] == ["a limit | a mean"]
    assert found["cut"] == ["cut off here"]
    assert found["scrolled"] == ["DIV."]


@pytest.mark.parametrize("name", REPORTS)
def test_no_bar_is_empty(browser: Browser, pages: dict[str, Path], name: str) -> None:
    """A bar of no width looks like a fault of the page; a limit of which nothing is used has a dot."""
    for width in (1280, 390):
        browser.show(pages[name], width)
        thin = (
            "[...document.querySelectorAll('.plot rect')].filter(e => e.checkVisibility() && e.getBBox().width < 0.4)"
        )
        assert browser.ask(f"{thin}.length") == 0


@pytest.mark.parametrize("name", ["passing", "served"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_all_text_can_be_read(browser: Browser, pages: dict[str, Path], name: str, scheme: str, media: str) -> None:
    browser.show(pages[name], scheme=scheme, media=media)
    answer = browser.ask(CONTRAST)
    assert answer["seen"] > 500
    assert answer["found"] == []


def test_the_contrast_check_sees_grey_on_grey(browser: Browser, tmp_path: Path) -> None:
    pale = tmp_path / "pale.html"
    pale.write_text('<body style="background:#fff;color:#999"><p>faint</p><svg><text fill="#eee">s</text></svg></body>')
    browser.show(pale)
    assert [text for _, text in browser.ask(CONTRAST)["found"]] == ["faint", "s"]


def test_dark_is_dark_and_paper_is_white(browser: Browser, page: Path) -> None:
    def background() -> int:
        red: int = browser.ask("Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")
        return red

    browser.show(page, scheme="dark")
    assert background() < 40
    browser.show(page, scheme="dark", media="print")
    assert background() == 255


def test_on_paper_folded_tables_are_open(browser: Browser, page: Path) -> None:
    hidden = (
        "[...document.querySelectorAll('details table')].filter(e => !e.checkVisibility({contentVisibilityAuto: true}))"
        ".length"
    )
    browser.show(page)
    assert browser.ask(hidden) > 5
    browser.show(page, media="print")
    assert browser.ask(hidden) == 0
    paper = browser.paper()
    assert paper.startswith(b"%PDF")
    assert paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") > 3


def test_a_hostile_name_runs_nothing(browser: Browser, tmp_path: Path) -> None:
    report = made_up.passing().model_copy(update={"chip": HOSTILE, "commands": (HOSTILE,)})
    path = tmp_path / "hostile.html"
    path.write_text(render_page(report, made_up.manifest(HOSTILE)), encoding="utf-8")
    browser.show(path)
    assert browser.ask("window.broken === undefined") is True
    assert browser.requests() == [path.as_uri()]
    assert HOSTILE in browser.ask("document.querySelector('h1').textContent")


def test_pictures_are_named_for_those_who_do_not_see_them(browser: Browser, page: Path) -> None:
    browser.show(page)
    tree = browser.do("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in tree if node.get("role", {}).get("value") in ("image", "img") and not node["ignored"]]
    drawn = browser.ask(f"{SHOWN}.length")
    assert len(images) == drawn
    assert all(len(node["name"]["value"]) > 30 for node in images)

"""The page as text: whole, escaped, the same every time, with words for every picture."""

from __future__ import annotations

import copy
import re
from collections import Counter
from html.parser import HTMLParser

import made_up
import made_up_served
import pytest

from flagrelease.page.scale import LinearScale, Log
from flagrelease.records.report import Report
from flagrelease.validate.page.curve import Line, layer_curve
from flagrelease.validate.page.forest import ForestRow, forest_plot
from flagrelease.validate.page.heat_map import HeatCell, HeatRow, heat_map
from flagrelease.validate.page.histogram import Mark, Series, histogram
from flagrelease.validate.page.matrix import Cell, MatrixRow, verdict_matrix
from flagrelease.validate.page.page import render_page
from flagrelease.validate.page.strip import StripItem, item_strip

REPORTS = {
    "passing": made_up.passing, "failing": made_up.failing, "without a device": made_up.without_device,
    "weights that fail": made_up.failing_weights, "served": made_up_served.served,
}  # fmt: skip
HOSTILE = '"></title></style><script>window.broken=1</script><img src=x onerror="window.broken=1">{{ 7*7 }}&lt;'
_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Walk(HTMLParser):
    """Elements with their attributes, text by element, ids."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def words(self) -> str:
        return " ".join(text for tag, text in self.texts if tag != "style")


def page_of(report: Report, model: str = "DeepSeek-V4-Flash") -> str:
    return render_page(report, made_up.manifest(model))


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS.keys())
def test_verdict_first_then_every_stage_with_its_reason(make: object) -> None:
    report = make()  # type: ignore[operator]
    walk = Walk(page_of(report))
    words = walk.words()
    verdict = {"pass": "Pass", "fail": "Fail", "cannot-tell": "Cannot tell"}[report.verdict]
    after_title = words.split("for mthreads", 2)[2]
    assert after_title.index(verdict) < after_title.index("integrity")
    for stage in report.stages:
        assert stage.detail in words
        for line in (*stage.proves, *stage.leaves_open):
            assert line in words
    for number in (report.manifest_sha256, *report.commands, *report.environment.values()):
        assert number in words


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS.keys())
def test_every_picture_has_words_and_ids_are_unique(make: object) -> None:
    page = page_of(make())  # type: ignore[operator]
    walk = Walk(page)
    ids = [attributes["id"] for _, attributes in walk.elements if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    pictures = [attributes for tag, attributes in walk.elements if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) == page.count('class="plot ')  # wide ones and narrow ones
    assert page.count('class="plot wide"') == page.count('class="plot narrow"')
    for attributes in pictures:
        for ident in (attributes["aria-labelledby"] or "").split():
            inside = re.search(rf'<(title|desc) id="{ident}">([^<]+)</\1>', page)
            assert inside, ident
            assert len(inside[2]) > 15
    hidden = [a for tag, a in walk.elements if tag == "svg" and a.get("role") != "img"]
    assert all(attributes.get("aria-hidden") == "true" for attributes in hidden)


def test_a_whole_report_has_all_its_pictures() -> None:
    page = page_of(made_up.passing())
    for ident in (
        "limits", "kl-oracle", "kl-native", "layers-streams", "layers-attention", "forest", "items-0", "lengths-0",
        "power-0", "items-1", "behaviour",
    ):  # fmt: skip
        assert f'id="{ident}-t"' in page, ident


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS.keys())
def test_the_headline_says_where_and_nothing_is_said_to_be_on_the_chip(make: object) -> None:
    """The chip is what a release is for. Figures of a CPU stood under "on ascend", as those of "this chip"."""
    report = make()  # type: ignore[operator]
    words = Walk(page_of(report)).words()
    where = report.computed_where
    assert where[1:] in words.split("manifest", 1)[0], "above the verdict"
    assert "this chip" not in words
    assert f"on {report.chip}" not in words


def test_what_tells_nothing_is_neither_green_nor_in_numbers_at_the_top() -> None:
    steps = page_of(made_up_served.served()).split("</nav>")[0]
    for name in ("benchmarks", "behaviour"):
        (tile,) = re.findall(rf'<a class="([^"]+)" href="#{name}">(.*?)</a>', steps)
        assert tile[0] == "t-not-informative"
        assert "Not informative" in tile[1]
        assert 'class="key"' not in tile[1]
    page = page_of(made_up_served.served())
    assert "This test tells nothing, whatever the release answers: a port that answers" in page
    assert "Not informative, which is no pass: benchmarks and behaviour." in page


def test_the_made_up_reports_are_of_all_verdicts() -> None:
    assert [make().verdict for make in REPORTS.values()] == ["pass", "fail", "cannot-tell", "fail", "cannot-tell"]


def test_every_stage_has_its_number_at_the_top() -> None:
    steps = page_of(made_up.passing()).split("</nav>")[0]
    found = re.findall(r'<span class="key">([^<]+)</span>', steps)
    report = made_up.passing()
    apart = {each.task: each.chip.value - each.native.value for each in report.benchmarks if each.native is not None}
    assert found[:2] == ["61 files", "69,187 tensors"]
    assert found[2].startswith("nearest limit used to 5")  # 0.984 of at least 0.97: 16 of 30 thousandths
    shown = [f"{task} {value:+.2f}".replace("-", "−").replace("+0.00", "0.00") for task, value in apart.items()]
    assert found[3] == ", ".join(shown)
    assert found[4] == "no valid tool call: +2.50 points"
    assert re.findall(r'<span class="key">([^<]+)</span>', page_of(made_up.failing_weights()))[1] == "1 finding"


def test_a_limit_that_nothing_can_break_is_drawn_in_its_own_colour() -> None:
    figures = copy.deepcopy(made_up.logits().figures)
    figures["comparisons"][2]["measures"][0]["verdict"] = "not-informative"  # type: ignore[index, call-overload]
    page = page_of(made_up.with_figures(figures))
    assert 'class="wash v-not-informative"' in page
    assert '<td data-name="outcome" class="v-not-informative">Not informative</td>' in page


def test_a_stage_that_was_not_run_is_not_drawn() -> None:
    page = page_of(made_up.without_device())
    assert 'class="plot"' not in page
    assert page.count("no musa device on this machine") == 3


def test_the_same_report_makes_the_same_bytes() -> None:
    assert page_of(made_up.passing()) == page_of(made_up.passing())


def test_nothing_is_asked_of_a_network_and_nothing_is_run() -> None:
    page = page_of(made_up.passing())
    walk = Walk(page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    assert "@import" not in page
    assert [tag for tag, _ in walk.elements if tag in ("script", "iframe", "object", "img", "form")] == []


def test_names_cannot_become_markup() -> None:
    honest = made_up.passing()
    settings = made_up.rules()
    hostile_rules = settings.benchmarks["aime"].model_copy(update={"title": HOSTILE, "dataset": HOSTILE})
    exams = (made_up.exam(hostile_rules, 6, 0.0, 2, names=HOSTILE),)
    stages = tuple(
        stage.model_copy(update={"detail": HOSTILE, "proves": (HOSTILE,), "leaves_open": (HOSTILE,)})
        for stage in honest.stages
    )
    report = made_up.report(settings, stages, exams).model_copy(
        update={"chip": HOSTILE, "commands": (HOSTILE,), "environment": {HOSTILE: HOSTILE}, "seeds": {HOSTILE: 1}}
    )
    walk = Walk(page_of(report, model=HOSTILE))
    assert [tag for tag, _ in walk.elements if tag in ("script", "img")] == []
    assert not any(name.startswith("on") for _, attributes in walk.elements for name in attributes)
    assert walk.words().count(HOSTILE) >= 20
    assert sum(text.startswith(HOSTILE) for tag, text in walk.texts if tag == "title") >= 18  # tips of 6 items too
    assert "49" not in [text for _, text in walk.texts]


def test_the_margin_stands_where_the_axis_says() -> None:
    row = ForestRow("exam", "pass", 0.5, -1.5, 2.5, margin=2.0)
    plot = str(forest_plot("f", [row], "words", worse="left", axis="points", width=760))
    limit = float(re.search(r'<line class="limit" x1="([0-9.]+)"', plot)[1])  # type: ignore[index]
    ticks = {text: float(x) for x, text in re.findall(r'<text class="tick" x="([0-9.]+)"[^>]*>([−0-9]+)</text>', plot)}
    assert limit == pytest.approx(ticks["−2"], abs=0.01)
    ends = [float(x) for x in re.findall(r'<line class="bar v-pass" x1="([0-9.]+)"', plot)]
    assert ends[0] == pytest.approx(ticks["0"] + (ticks["2"] - ticks["0"]) / 2 * -1.5, abs=0.02)
    turned = str(forest_plot("f", [row], "words", worse="right", axis="points", width=760))
    right = float(re.search(r'<line class="limit" x1="([0-9.]+)"', turned)[1])  # type: ignore[index]
    assert right == pytest.approx(ticks["2"], abs=0.01)


def test_a_histogram_is_as_high_as_its_shares() -> None:
    drawn = histogram(
        "h", [0.1, 1, 10, 100], [Series("a", "chip", (1, 3, 0))], title="t", description="d", axis="x", width=760
    )
    outline = re.search(r'<polyline class="curve chip" points="([^"]+)"', str(drawn))[1]  # type: ignore[index]
    points = [tuple(map(float, pair.split(","))) for pair in outline.split()]
    base = points[-1][1]
    heights = [base - points[2 * n][1] for n in range(3)]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.05)
    assert heights[2] == 0
    widths = [points[2 * n + 1][0] - points[2 * n][0] for n in range(3)]
    assert widths == pytest.approx([widths[0]] * 3, abs=0.02)  # decades are equally wide


def test_a_step_is_marked_and_an_error_of_zero_is_at_the_bottom() -> None:
    line = Line("port", "chip", (0.0, 0.001, 0.1, 0.1))
    drawn = str(layer_curve("c", [line], title="t", description="d", axis="layer", limit=0.02, steps=[2], width=760))
    places = [
        tuple(map(float, at)) for at in re.findall(r'<circle class="fill chip" cx="([0-9.]+)" cy="([0-9.]+)"', drawn)
    ]
    base = float(re.search(r'<line class="axis" x1="[0-9.]+" y1="([0-9.]+)" x2="742"', drawn)[1])  # type: ignore[index]
    assert places[0][1] == base
    assert places[0][1] > places[1][1] > places[2][1] == places[3][1]
    assert "step at layer 2" in drawn
    mark = float(re.search(r'<rect class="flagged" x="([0-9.]+)"', drawn)[1])  # type: ignore[index]
    assert mark < places[2][0] < mark + 18
    assert layer_curve("c", [Line("p", "chip", (0.0, 0.0))], title="t", description="d", axis="layer", width=760)


def test_a_layer_without_a_number_is_a_gap_and_said() -> None:
    line = Line("port", "chip", (0.001, None, 0.001, 0.002, None))
    drawn = str(layer_curve("c", [line], title="t", description="d", axis="layer", width=760))
    curves = [points.split() for points in re.findall(r'<polyline class="curve chip" points="([^"]+)"', drawn)]
    assert [len(points) for points in curves] == [1, 2]
    assert drawn.count("<circle") == 3
    page = page_of(made_up.with_figures(made_up.no_number_in_layers(3, 5)))
    assert "Not a number, and a gap in the curve of this release: layer 3, 5." in page
    assert page.count("not defined") == 2 * 2  # of both curves' tables


def test_tokens_without_a_difference_count_in_the_lowest_bin() -> None:
    """Half of the tokens are the same to the last bit: the lowest bin is as high as half of all."""
    page = page_of(made_up.with_figures(made_up.half_without_a_difference()))
    (outline,) = re.findall(r'id="kl-native-t".*?<polyline class="curve chip" points="([^"]+)"', page, re.DOTALL)
    (grid,) = re.findall(r'id="kl-native-t"(.*?)</svg>', page, re.DOTALL)
    ticks = {
        text: float(y) for y, text in re.findall(r'<text class="tick" x="[0-9.]+" y="([0-9.]+)"[^>]*>(\d+%)<', grid)
    }
    percent = (ticks["0%"] - ticks["20%"]) / 20
    first = float(outline.split()[0].split(",")[1])
    assert (ticks["0%"] - 4 - first) / percent == pytest.approx(50, abs=0.1)
    assert ">≤ 10⁻¹⁰<" in grid
    assert "Tokens below 1e-10 nats are in the lowest bin: 8,192 in prefill, 0 in decode." in page
    passing = page_of(made_up.passing())
    assert "≤ 10⁻¹⁰" not in passing
    assert "in the lowest bin" not in passing


def test_a_mark_at_the_edge_says_its_name_towards_the_middle() -> None:
    marks = [Mark(1.0, "left", "mean"), Mark(10.0, "middle", "limit"), Mark(100.0, "right", "limit")]
    series = [Series("p", "chip", (1, 1))]
    drawn = str(
        histogram("h", [1.0, 10.0, 100.0], series, title="t", description="d", axis="x", marks=marks, width=760)
    )
    anchors = {name: anchor for anchor, name in re.findall(r'text-anchor="(\w+)">(left|middle|right)<', drawn)}
    assert anchors == {"left": "start", "middle": "start", "right": "end"}
    levels = [float(y) for y in re.findall(r'y="([0-9.]+)" text-anchor="\w+">(?:left|middle|right)<', drawn)]
    assert len(set(levels)) == 3, "each on a line of its own"


@pytest.mark.parametrize(
    ("below", "said"),
    [(16384, "Every token is below 1e-10 nats: there is nothing to draw."), (0, "No token&#39;s KL is a number.")],
)
def test_a_distribution_without_a_picture_is_said(below: int, said: str) -> None:
    page = page_of(made_up.with_figures(made_up.nothing_above_the_lowest_edge(below)))
    assert page.count(said) == 2  # against the oracle, and against the native run
    assert "in the lowest bin" not in page
    assert 'id="kl-native-t"' not in page


def test_the_strip_shades_by_share_and_marks_the_worse() -> None:
    items = [StripItem("hard", 0.0, 0.0), StripItem("lost", 1.0, 0.25), StripItem("won", 0.5, 0.75)]
    drawn = str(item_strip("s", items, "words", width=760))
    styles = re.findall(r'<rect class="([^"]+)"', drawn)
    assert styles == [
        "share s10", "share s2", "change down c4", "share s5", "share s8", "change up c2", "share s0", "share s0",
        "change c0",
    ]  # fmt: skip


def test_a_matrix_has_a_cell_for_each_comparison_and_says_verdicts_by_signs() -> None:
    row = MatrixRow("greedy text", (Cell("pass", "0 of 8"), Cell("fail", "3 of 8"), Cell("not-run")))
    columns = ("alone", "in a batch", "graphs off")
    for width, where in ((760, 10), (320, 20)):
        drawn = str(verdict_matrix("m", columns, [row], title="t", description="d", width=width))
        cells = re.findall(r'<rect class="wash v-([a-z-]+)"', drawn)
        assert cells == ["pass", "fail", "not-run"], where
        assert re.findall(r">([✓✗?∅–])</text>", drawn) == ["✓", "✗", "–"]
        assert [name for name in columns if f">{name}</text>" not in drawn] == []
    with pytest.raises(ValueError, match="another number of cells"):
        verdict_matrix("m", columns[:2], [row], title="t", description="d", width=760)


def test_a_heat_map_says_its_shares_in_figures_and_full_colour_is_for_all() -> None:
    cells = (HeatCell(1.0), HeatCell(0.999), HeatCell(0.0, "fail"), HeatCell(None))
    lengths = ("4k", "32k", "128k", "1M")
    drawn = str(
        heat_map("h", lengths, [HeatRow("50%", cells)], title="t", description="d", across="l", down="d", width=760)
    )
    assert re.findall(r'<rect class="([a-z0-9 ]+)"', drawn) == ["heat h10", "heat h9", "heat h0 failed", "unasked"]
    assert re.findall(r'class="(?:on heat|tick)[^>]*>([0-9]+%|–)</text>', drawn) == ["50%", "100%", "99%", "0%", "–"]


@pytest.mark.parametrize(
    ("scale", "labels"),
    [
        (LinearScale(-1, 1, 0, 100), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (LinearScale(0, 0.013, 0, 100), ["0.000", "0.005", "0.010"]),
        (LinearScale(0, 42, 0, 100), ["0", "10", "20", "30", "40"]),
    ],
)
def test_ticks_are_round_numbers(scale: LinearScale, labels: list[str]) -> None:
    assert [label for _, label in scale.ticks()] == labels


def test_ticks_of_a_logarithmic_axis() -> None:
    assert [label for _, label in Log(2e-6, 0.3, 0, 1).ticks()] == ["10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1"]
    assert [label for _, label in Log(1500, 12000, 0, 1).ticks()] == ["2,000", "5,000", "10,000"]

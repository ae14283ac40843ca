"""What a server told of logits, and the texts of the native model, on the page: in words, and in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up
import pytest
from browser import Browser
from test_page_in_browser import LAYOUT, OPEN_ALL

from flagrelease.validate.logits.continuations.figures import GateFigures, GateText
from flagrelease.validate.logits.served.figures import Costs, Refused, Served, ServedBounds
from flagrelease.validate.page.page import render_page

BOUNDS = {
    "shown": 0.0039, "inferred": 0.0053, "share": 0.736, "bounded": 0.0, "least_variation": 0.011,
    "most_variation": 0.0489, "unlisted": 0.0377,
}  # fmt: skip


def served(refused: bool = False) -> dict[str, Any]:
    """Two comparisons of prompts; the upper end of an interval is unknown where so few alternatives tell nothing."""
    comparisons = [
        made_up.comparison(reference, "served", 0.004, seed) for reference, seed in (("oracle", 1), ("native", 2))
    ]
    comparisons[0]["measures"][0] |= {"high": None, "verdict": "cannot-tell"}
    figures = Served(
        way="prompt-logprobs",
        alternatives=20,
        documents=64,
        refused=(Refused(name="prose 7", reason="the server did not read the same tokens"),) if refused else (),
        cut=("register 1",) if refused else (),
        bounds=(ServedBounds(reference="oracle", **BOUNDS), ServedBounds(reference="native", **BOUNDS)),
        costs=Costs(requests=64, tokens=46211, seconds=301.5),
    )
    gate = GateFigures(
        tokens=4096,
        measures=(
            made_up.measure("nll", "loss of log-probability", 0.006, 0.03, at_least=-0.03),
            made_up.measure("sampled_kl", "KL(native || port)", 0.005, 0.03),
        ),
        texts=(
            GateText(name="chinese 3", tokens=128, native=1.91, port=1.93),
            GateText(name="code 1", tokens=128, native=0.4, port=0.9),
        ),
        refused=(),
        costs=Costs(requests=32, tokens=6144, seconds=40.0),
    )  # fmt: skip
    return {
        "comparisons": comparisons, "ratio": {}, "served": figures.model_dump(mode="json"),
        "continuations": gate.model_dump(mode="json"),
    }  # fmt: skip


def rendered(folder: Path, figures: dict[str, Any]) -> Path:
    path = folder / "report.html"
    whole, made = made_up.without_device(), made_up.logits().model_copy(update={"figures": figures})
    stages = tuple(made if stage.name == "logits" else stage for stage in whole.stages)
    path.write_text(render_page(whole.model_copy(update={"stages": stages}), made_up.manifest()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("served"), served(refused=True))


def test_the_page_says_what_lists_prove_suggest_and_leave_out(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for said in (
        "64 documents, scored by prompt-logprobs with 20 alternatives", "mean KL at least", "74%", "3.77%",
        "0.011 to 0.0489", "64 requests of 46,211 tokens, which took 302 s in all",
        "Not compared: 1 (prose 7: the server did not read the same tokens)", "context: register 1",
        "2 texts that the native model sampled, 4,096 tokens", "oracle, served",
    ):  # fmt: skip
        assert said in text, said
    assert text.index("code 1") < text.index("chinese 3"), "the largest loss comes first"


def test_a_gate_alone_has_its_panels(tmp_path: Path) -> None:
    figures = {"comparisons": [], "ratio": {}, "continuations": served()["continuations"]}
    text = rendered(tmp_path, figures).read_text(encoding="utf-8")
    assert "Texts of the native model" in text
    assert "What the server told" not in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_is_cut_and_nothing_lies_over_another(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.show(page, width, scheme)
    browser.ask(OPEN_ALL)
    found = browser.ask(LAYOUT)
    assert found["seen"] > 100
    assert (found["cut"], found["over"], found["scrolled"]) == ([], [], [])

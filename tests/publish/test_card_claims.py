"""Every claim of a card has a status and a record, and what has none is not rendered."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from test_card import CASES, records_of

from flagrelease.errors import VerificationError
from flagrelease.publish.card import make_card, make_claims
from flagrelease.publish.claims import MEANINGS, Advice, Claim, Claims, Columns, Evidence, Row, manifest, report
from flagrelease.publish.front_matter import check_card
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.registry import HUBS
from flagrelease.publish.records import Records
from flagrelease.records.computed_on import ByEngine, ByServer
from flagrelease.records.report import Scope, verdict_of

_STATUS = r"(proved|measured|inferred|not run)"


def flash(**report_changes: Any) -> Records:
    records = records_of("deepseek-v4-flash", "ascend")
    assert records.report is not None
    return replace(records, report=records.report.model_copy(update=report_changes))


def card_of(records: Records) -> str:
    return make_card(records, HUGGING_FACE, "a/b").decode()


@pytest.mark.parametrize(("recipe", "chip"), CASES, ids=lambda value: str(value))
def test_every_item_row_and_bold_sentence_has_its_status(recipe: str, chip: str) -> None:
    for validated in (True, False):
        records = records_of(recipe, chip, validated)
        for hub in HUBS:
            text = make_card(records, hub, "a/b").decode()
            body = re.sub(r"```.*?```", "", text.split("---\n", 2)[2], flags=re.DOTALL)
            rows = [line for line in body.splitlines() if line.startswith("|") and not set(line) <= set("|-")]
            heads = [row for row in rows if row.endswith("| status |")]
            assert all(re.search(rf"\| {_STATUS} \|$", row) for row in rows if row not in heads), rows
            said = [line for line in body.splitlines() if line.startswith(("- ", "**"))]
            assert [line for line in said if not re.search(rf" \*\({_STATUS}\)\*$", line)] == []
            claims = json.loads(make_claims(records, hub, "a/b"))["claims"]
            assert len(claims) == len(rows) - len(heads) + len(re.findall(rf"\*\({_STATUS}\)\*$", body, re.MULTILINE))
            assert {claim["status"] for claim in claims} <= MEANINGS.keys()
            assert all(claim["record"] or claim["status"] == "not run" for claim in claims)
            assert "evaluating" not in text.lower()
            if not validated:
                assert not {"measured", "proved"} & {claim["status"] for claim in claims}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("It is as good as the native model.", "without a status and a record"),
        ("- weights: bit for bit those of the source", "without a status and a record"),
        ("| GPQA | Evaluating |", "without a status and a record"),
        (Claim("measured", report("/benchmarks/7"), "GPQA 90.4"), "report.json#/benchmarks/7, which is not there"),
        (Claim("measured", report("/seeds"), "seeds"), "which is not there"),
        (Claim("proved", None, "lossless"), "said to be proved, and no record is named"),
        (Row("inferred", Evidence("chips.yaml", "/chips/abacus"), ("needs", "beads")), "which is not there"),
        (Row("measured", manifest("/target/o_groups"), ("o-groups", "none")), "which is not there"),
    ],
)  # fmt: skip
def test_what_has_no_record_is_not_rendered(line: Any, said: str) -> None:
    records = replace(records_of("deepseek-v4-flash", "nvidia"))
    with pytest.raises(VerificationError, match=re.escape(said)):
        list(Claims(records).render([line]))
    if not isinstance(line, str):
        with pytest.raises(VerificationError, match=re.escape(said)):
            Claims(records).document([line])


def test_without_a_report_nothing_is_measured() -> None:
    records = records_of("deepseek-v4-flash", "nvidia", validated=False)
    with pytest.raises(VerificationError, match="which is not there"):
        list(Claims(records).render([Claim("measured", report("/verdict"), "passed")]))
    text = card_of(records)
    assert "| logits | not-run | There is no report. | not run |" in text
    assert "No benchmark was run with this release. *(not run)*" in text


def test_headings_code_and_advice_are_no_claims() -> None:
    lines = ["## Run", "", "```bash", "- any line | of code", "```", Advice("Ask the server:"), Columns(("a",))]
    shown = list(Claims(records_of("tiny", "ascend")).render(lines))
    assert shown == [
        "## Run",
        "",
        "```bash",
        "- any line | of code",
        "```",
        "Ask the server:",
        "| a | status |",
        "|---|---|",
    ]


@pytest.mark.parametrize(
    ("computed_on", "said"),
    [
        (
            ByEngine(stages=("logits",), machine="x86_64 CPU (2 cores)", device="cpu", count=1, chips_own=False),
            "**Figures: computed on x86_64 CPU (2 cores): proves the tool, not the chip.** *(measured)*",
        ),
        (
            ByEngine(stages=("logits",), machine="NVIDIA H200", device="cuda", count=8, chips_own=True),
            "**Figures: computed by the bundled engine on 8 x NVIDIA H200.** *(measured)*",
        ),
        (
            ByServer(
                stages=("benchmarks",), address="http://10.0.0.7:8000/v1", model="m",
                told={"owned_by": "vllm", "version": "0.11.2", "server": "uvicorn"},
            ),
            "**Figures: answered by the server at http://10.0.0.7:8000/v1, which says it is vllm 0.11.2; nothing shows "
            "its machine or its weights.** *(inferred)*",
        ),
    ],
    ids=["CPU", "GPU", "server"],
)  # fmt: skip
def test_where_figures_were_computed_is_below_the_title(computed_on: ByEngine | ByServer, said: str) -> None:
    records = flash(schema_version=2, computed_on=(computed_on,), scope=Scope(until=None, verdict="pass"))
    body = card_of(records).split("---\n", 2)[2].splitlines()
    assert body[1].startswith("# ")
    assert body[3] == said
    (entry,) = check_card(card_of(records), HUGGING_FACE)["model-index"][0]["results"]
    assert str(computed_on) in entry["metrics"][0]["name"]


def test_a_score_that_tells_nothing_is_not_in_the_hubs_tables() -> None:
    records = flash()
    assert records.report is not None
    blunt = records.report.benchmarks[0].model_copy(update={"verdict": "not-informative"})
    changed = flash(benchmarks=(blunt,))
    assert changed.report is not None
    assert verdict_of(changed.report.rules, changed.report.stages, (blunt,)) == "pass"
    text = card_of(changed)
    assert "model-index" not in check_card(text, HUGGING_FACE)
    assert "| not-informative | measured |" in text


def test_the_rates_of_answers_that_are_none_stand_beside_the_score() -> None:
    records = flash()
    assert records.report is not None
    sides = {"native": {"truncated": 0.5, "invalid": 0.0}, "chip": {"truncated": 12.25, "invalid": 1.0, "refused": 2.0}}
    entry = records.report.benchmarks[0].model_copy(update={"figures": {"sides": sides}})
    text = card_of(flash(benchmarks=(entry,)))
    assert "this release: cut off 12.2%, without an answer 1%, refused 2%; native: cut off 0.5%" in text

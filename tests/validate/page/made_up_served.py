"""A made-up report of a server: pre-flight, invariance and long contexts as well, and parts that tell nothing."""

from __future__ import annotations

from typing import Any

import made_up

from flagrelease.records.computed_on import ByServer
from flagrelease.records.report import Report, Stage
from flagrelease.validate.behaviour.stage import BehaviourFigures, RateFigures
from flagrelease.validate.exams.stage import benchmarks_stage
from flagrelease.validate.invariance.figures import CircumstanceFigures, InvarianceFigures, LengthFigures, PartedText
from flagrelease.validate.long_context.figures import CellFigures, LongContextFigures, OverallFigures, SideFigures
from flagrelease.validate.preflight.check import CHECKS, PreflightCheck, PreflightFigures, fixes_of

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
CIRCUMSTANCES = (
    "the same request again", "in a batch of 8", "prefill in chunks of 512 tokens", "graphs off", "without speculation",
    "after a prefix hit", "streamed", "32 requests at once",
)  # fmt: skip


def served() -> Report:
    settings = made_up.rules()
    wanted = settings.model_copy(update={"stages": ("integrity", "weights", "preflight", "invariance", "long-context")})
    guessed = settings.benchmarks["aime"].model_copy(update={"margin": 90.0})
    exams = (
        made_up.exam(settings.benchmarks["gpqa"], 198, 0.0, 2),
        made_up.exam(guessed, 30, 0.0, 2),
    )
    parts = (
        made_up.integrity(), made_up.weights(), preflight(), made_up.not_run("logits", "the server gives no logprobs"),
        invariance(), long_context(), benchmarks_stage(exams, by_endpoint=True), blunt_behaviour(),
    )  # fmt: skip
    names = ("preflight", "invariance", "long-context", "benchmarks", "behaviour")
    told = {"owned_by": "vllm", "version": "0.11.2", "server": "uvicorn"}
    computed = ByServer(stages=names, address="http://10.0.0.7:8000/v1", model="deepseek-v4-flash", told=told)
    return made_up.report(wanted, parts, exams).model_copy(update={"computed_on": (computed,)})


def preflight() -> Stage:
    checks = []
    for number, name in enumerate(CHECKS):
        verdict: Any = ("pass", "pass", "pass", "fail", "not-shown", "noted")[number % 6]
        checks.append(
            PreflightCheck(
                id=name, asked="a chat of two turns, sent three times", expected="the same 31 tokens each time",
                came="31, 31 and 31 tokens of the prompt" if verdict == "pass" else "33 tokens: the BOS stands twice",
                verdict=verdict, fixes=fixes_of(name) if verdict in ("fail", "noted") else {},
            )
        )  # fmt: skip
    figures = PreflightFigures(
        server="http://10.0.0.7:8000/v1", checks=tuple(checks), requests=64, prompt_tokens=9000, tokens=2048
    )
    detail = "BOS twice, and three other faults."
    return Stage(name="preflight", verdict="cannot-tell", detail=detail, figures=figures.model_dump(mode="json"))


def invariance() -> Stage:
    rows = []
    for number, name in enumerate(CIRCUMSTANCES):
        bad = number in (2, 3)
        rows.append(
            CircumstanceFigures(
                name=name, against=CIRCUMSTANCES[0], kind="floor" if number == 0 else "circumstance", texts=16,
                same=3 if bad else 16, ties=2 if bad else 0, clear=11 if bad else 0, unknown=0, tokens=2048,
                mean_difference=0.31 if bad else 2e-5, largest_difference=7.25 if bad else 4e-3, right=0 if bad else 8,
                asked=8, cached=0, verdict="cannot-tell" if bad else "pass", why="11 texts part at a clear margin",
                parted=(PartedText(prompt="en-explain", at=17, margin=2.5, parting="clear margin"),) if bad else (),
            )
        )  # fmt: skip
    figures = InvarianceFigures(
        server="http://10.0.0.7:8000/v1", variants={}, requests=512, prompt_tokens=10**6, tokens=65536, mean_limit=1e-3,
        largest_limit=0.2, same_limit=0.9, tie=0.1, circumstances=tuple(rows),
        lengths=tuple(LengthFigures(tokens=tokens, right=8, asked=8) for tokens in LENGTHS),
    )  # fmt: skip
    detail = "Two circumstances change answers."
    return Stage(name="invariance", verdict="cannot-tell", detail=detail, figures=figures.model_dump(mode="json"))


def long_context() -> Stage:
    depths = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 100.0)
    cells = tuple(_cell(length, depth) for length in LENGTHS for depth in depths)
    side: dict[str, Any] = {"invalid": 1.25, "truncated": 0.5, "prompt_tokens": 10**8, "generated_tokens": 4096}
    figures = LongContextFigures(
        form="registers", hops=2, items=8, native=SideFigures(stack="8 x H200", score=97.5, **side),
        chip=SideFigures(stack="deepseek-v4-flash at http://10.0.0.7:8000/v1", score=88.25, **side),
        overall=OverallFigures(
            difference=-9.25, se=1.5, lower=-11.75, upper=-6.75, margin=5, alpha=0.05, critical=1.645,
            verdict="cannot-tell", could_fail=True, further_items=4,
        ),
        cells=cells, lengths=tuple(_cell(length, None) for length in LENGTHS),
        depths=tuple(_cell(None, depth) for depth in depths), obstacles=(),
    )  # fmt: skip
    detail = "Beyond 128k tokens, what stands in the first half is not found."
    return Stage(name="long-context", verdict="cannot-tell", detail=detail, figures=figures.model_dump(mode="json"))


def _cell(length: int | None, depth: float | None) -> CellFigures:
    lost = (length or 0) > 131072 and (depth or 0) < 50
    return CellFigures(
        length=length, depth=depth, items=8, native=8, chip=0 if lost else 8 if (length or 0) < 65536 else 7,
        lost=8 if lost else 0, gained=0, p=0.004 if lost else 1.0, verdict="fail" if lost else "pass",
        native_invalid=0, chip_invalid=0, native_truncated=0, chip_truncated=0,
    )  # fmt: skip


def blunt_behaviour() -> Stage:
    names = ("ends in a loop", "cut off at the limit of tokens", "no valid tool call")
    rates = tuple(
        RateFigures(
            name=name, port=80, port_of=80, native=80, native_of=80, difference=0, low=-3.3, high=3.3,
            verdict="not-informative",
        )
        for name in names
    )  # fmt: skip
    figures = BehaviourFigures(
        margin=10, prompts=32, repeats=8, native_stack="8 x H200", golden_pairs=0, golden_differing=(),
        token_mismatches=(), rates=rates,
    )  # fmt: skip
    return Stage(
        name="behaviour", verdict="not-informative", detail="Not informative: both sides do it in every answer.",
        leaves_open=("Whether what the answers say is right.",), figures=figures.model_dump(mode="json"),
    )  # fmt: skip

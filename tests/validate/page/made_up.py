"""Reports to look at: figures of a made-up validation, from a generator with a seed."""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any

import numpy as np

from flagrelease.records.computed_on import ByEngine
from flagrelease.records.manifest import ElementCounts, Manifest, SourceRecord, TargetRecord, ToolRecord
from flagrelease.records.report import Benchmark, Report, Scope, Stage, verdict_of
from flagrelease.records.rules import BenchmarkRules, ValidationRules
from flagrelease.validate.behaviour.stage import BehaviourFigures, RateFigures
from flagrelease.validate.exams.comparison import compare
from flagrelease.validate.exams.side import Answer, AnsweredItem, Asked, Side
from flagrelease.verify.result import Check, Finding

DIGEST = hashlib.sha256(b"manifest").hexdigest()


def manifest(model: str = "DeepSeek-V4-Flash") -> Manifest:
    return Manifest(
        tool=ToolRecord(version="0.1.0"),
        model=model,
        target=TargetRecord(dtype="fp8", layout="mp", mp=8),
        source=SourceRecord(
            repo="deepseek-ai/DeepSeek-V4-Flash", revision="60d8d70770c6", license="MIT", identity="ab" * 32,
            config_sha256="cd" * 32, files=(), tensors={},
        ),
        recipe=None, options={}, plan="p", elements=ElementCounts(), inexact={}, files=(), tensors={},
    )  # fmt: skip


def rules() -> ValidationRules:
    exams = {"gpqa": BenchmarkRules(preset="gpqa-diamond"), "aime": BenchmarkRules(preset="aime")}
    return ValidationRules(benchmarks=exams)


def passing() -> Report:
    settings = rules()
    exams = (exam(settings.benchmarks["gpqa"], 198, 0.0, 2), exam(settings.benchmarks["aime"], 30, 0.0, 2))
    return report(settings, (integrity(), weights(), logits(), benchmarks_stage(exams), behaviour()), exams)


def failing() -> Report:
    settings = rules()
    exam_failed = exam(settings.benchmarks["gpqa"], 198, 0.35, 1)
    stages = (integrity(), weights(), logits(step=29), benchmarks_stage((exam_failed,)))
    stages = (*stages, not_run("behaviour", "the stage benchmarks failed"))
    return report(settings, stages, (exam_failed,))


def without_device() -> Report:
    reason = "no musa device on this machine; --baseline and a device are needed"
    stages = (integrity(), weights(), *(not_run(name, reason) for name in rules().stages[2:]))
    return report(rules(), stages, ())


def failing_weights() -> Report:
    finding = Finding(rule="differs from the source", tensor="layers.7.ffn.experts.12.w1.weight", row=128, column=64)
    bad = Check(
        name="source", status="fail", checked=900, bytes=10**11, detail="second decoder", failed=1, findings=(finding,)
    )
    stage = Stage(
        name="weights", verdict="fail", detail="source: 1 finding", figures={"checks": [bad.model_dump(mode="json")]}
    )
    reason = "the stage weights failed"
    return report(rules(), (integrity(), stage, *(not_run(name, reason) for name in rules().stages[2:])), ())


def report(settings: ValidationRules, stages: tuple[Stage, ...], exams: tuple[Benchmark, ...]) -> Report:
    return Report(
        schema_version=2, tool=ToolRecord(version="0.1.0"), manifest_sha256=DIGEST, chip="mthreads",
        verdict=verdict_of(settings, stages, exams), rules=settings, stages=stages, benchmarks=exams,
        environment={"device": "MTT S5000", "python": "3.11.2", "torch": "2.9.1", "flagrelease": "0.1.0"},
        commands=("flagrelease validate DeepSeek-V4-Flash-fp8-mp8 --chip mthreads --baseline flash-baseline",),
        seeds={"gpqa": 0, "aime": 0, "logits bootstrap": 0},
        computed_on=computed_on(stages), scope=Scope(until=None, verdict=verdict_of(settings, stages, exams)),
    )  # fmt: skip


def computed_on(stages: tuple[Stage, ...]) -> tuple[ByEngine, ...]:
    ran = tuple(stage.name for stage in stages[2:] if stage.verdict != "not-run")
    return (ByEngine(stages=ran, machine="MTT S5000", device="musa", count=8, chips_own=True),) if ran else ()


def not_run(name: Any, reason: str) -> Stage:
    return Stage(name=name, verdict="not-run", detail=reason)


def integrity() -> Stage:
    check = Check(name="files", status="pass", checked=61, bytes=302_456_789_012, detail="names, sizes and SHA-256")
    return Stage(
        name="integrity", verdict="pass", detail="All 61 files are those of the manifest.",
        proves=("The folder holds exactly the files of its manifest, with their sizes and SHA-256.",),
        leaves_open=("Whether the manifest is right.",), figures={"checks": [check.model_dump(mode="json")]},
    )  # fmt: skip


def weights() -> Stage:
    named = ("config", "structure", "replicas", "tensors", "source", "companions")
    checks = [Check(name=n, status="pass", checked=69187, bytes=302 * 10**9, detail=f"the check {n}") for n in named]
    return Stage(
        name="weights", verdict="pass", detail="Every tensor is bit for bit what a second decoder makes of the source.",
        proves=("All 69187 tensors are what the source says: copied, or repacked without loss.",),
        leaves_open=("Whether the engine on the chip computes with them as it should.",),
        figures={"checks": [check.model_dump(mode="json") for check in checks]},
    )  # fmt: skip


def measure(name: str, label: str, value: float, at_most: float | None, verdict: str = "pass", **more: Any) -> Any:
    made = {"name": name, "label": label, "value": value, "low": value * 0.9, "high": value * 1.1}
    return made | {"at_least": None, "at_most": at_most, "verdict": verdict} | more


def comparison(reference: str, replay: str, mean: float, seed: int, decides: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kl = np.exp(rng.normal(math.log(mean) - 0.9, 1.3, 16384))
    edges = np.linspace(-10, 2, 49)
    documents = [
        {"name": f"{kind}-{n}", "kind": kind, "tokens": 256, "mean_kl": float(mean * rng.uniform(0.6, 1.4))}
        for kind in ("english", "chinese", "code", "mathematics", "long") for n in range(4)
    ]  # fmt: skip
    return {
        "reference": reference, "replay": replay, "decides": decides, "tokens": len(kl), "floor": 3.1e-4,
        "mean_kl": float(kl.mean()),
        "measures": [
            measure("mean_kl", "mean KL, nats", float(kl.mean()), 0.01),
            measure("top1", "same most likely token", 0.984, None, at_least=0.97, low=0.978, high=0.988),
            measure("perplexity", "relative difference of perplexity", -0.0004, 0.003, at_least=-0.003),
        ],
        "kl": {
            "edges": edges.tolist(), "histogram": np.histogram(np.log10(kl), edges)[0].tolist(), "below": 0,
            "quantiles": {str(q): float(np.quantile(kl, q)) for q in (0.5, 0.9, 0.99, 0.999)},
        },
        "top1_by_margin": [
            {"margin": m, "tokens": int(16384 * s), "agree": a}
            for m, s, a in ((0, 1, 0.984), (0.1, 0.92, 0.993), (0.5, 0.7, 1.0), (2, 0.33, 1.0))
        ],
        "by_document": documents,
    }  # fmt: skip


def logits(step: int | None = None) -> Stage:
    depth = np.arange(43)
    errors = 0.0009 * np.sqrt(depth + 1) * np.random.default_rng(3).uniform(0.9, 1.1, 43)
    if step is not None:
        errors[step:] += 0.06
    port, floor = errors.tolist(), (errors * 0 + 0.0005 * np.sqrt(depth + 1)).tolist()
    curves = {kind: {"port": port, "floor": floor} for kind in ("streams", "attention")}
    bad = step is not None
    layers = {
        "reference": "native", "positions": 128, "curves": curves,
        "step": {"layer": step, "half": "feed-forward", "before": 0.005, "behind": 0.065} if bad else None,
        "measures": [measure("last_error", "error behind the last layer", port[-1], 0.02, "fail" if bad else "pass")],
    }  # fmt: skip
    return Stage(
        name="logits", verdict="pass" if step is None else "cannot-tell",
        detail="Within every limit on 16384 prefill and 4096 decode tokens." if step is None else "A step in layer 29.",
        proves=("In prefill, over 16384 tokens, the release gives the distributions of the source's native run.",),
        leaves_open=("Equal distributions on given texts are not equal answers: benchmarks measure those.",),
        figures={
            "comparisons": [
                comparison("oracle", "prefill", 0.0051, 4, decides=False),
                comparison("oracle", "decode", 0.0052, 5, decides=False),
                comparison("native", "prefill", 0.0009, 6), comparison("native", "decode", 0.00095, 7),
            ],
            "ratio": {}, "layers": layers,
        },
    )  # fmt: skip


def with_figures(figures: dict[str, Any]) -> Report:
    """The passing report with other figures of its logits."""
    made = passing()
    stages = tuple(s.model_copy(update={"figures": figures}) if s.name == "logits" else s for s in made.stages)
    return made.model_copy(update={"stages": stages})


def no_number_in_layers(*layers: int) -> dict[str, Any]:
    figures: dict[str, Any] = copy.deepcopy(logits().figures)
    for curve in figures["layers"]["curves"].values():
        for layer in layers:
            curve["port"][layer] = None
    return figures


def half_without_a_difference() -> dict[str, Any]:
    """In prefill against the native run."""
    figures: dict[str, Any] = copy.deepcopy(logits().figures)
    kl = figures["comparisons"][2]["kl"]
    kl["histogram"], kl["below"] = [0] * 24 + [8192] + [0] * 23, 8192
    return figures


def nothing_above_the_lowest_edge(below: int) -> dict[str, Any]:
    """In every comparison."""
    figures: dict[str, Any] = copy.deepcopy(logits().figures)
    for each in figures["comparisons"]:
        each["kl"]["histogram"], each["kl"]["below"] = [0] * 48, below
    return figures


def side(settings: BenchmarkRules, items: int, shift: float, seed: int, stack: str, names: str = "q") -> Side:
    rng, questions = np.random.default_rng(seed), np.random.default_rng(99)
    skill = questions.beta(0.9, 0.35, items)
    answered = []
    for n in range(items):
        right = rng.random(settings.most_repeats) < max(0.0, skill[n] - shift * questions.random())
        tokens = rng.lognormal(8.6, 0.7, settings.most_repeats).astype(int)
        answers = tuple(
            Answer(
                value="ABCD"[n % 4] if r else "BCDA"[n % 4], tokens=int(t), finish="stop", reasoned=True,
                whole_sha256=hashlib.sha256(f"{seed}{n}{k}".encode()).hexdigest(),
            )
            for k, (r, t) in enumerate(zip(right, tokens, strict=True))
        )  # fmt: skip
        answered.append(
            AnsweredItem(
                id=f"{names}{n:03}", prompt_sha256="ee" * 32, prompt_tokens=100, correct="ABCD"[n % 4], answers=answers
            )
        )
    shared = Asked.model_fields.keys() - {"exam_sha256"}
    asked = Asked(exam_sha256="aa" * 32, **settings.model_dump(include=set(shared)))
    return Side(subject="a release", stack=stack, revision="b" * 40, asked=asked, items=tuple(answered))


def exam(settings: BenchmarkRules, items: int, shift: float, seed: int, names: str = "q") -> Benchmark:
    native = side(settings, items, 0, seed, "8 x H200, flagrelease 0.1.0, torch 2.9.1", names)
    return compare(settings, native, side(settings, items, shift, seed + 50, "8 x MTT S5000", names))


def benchmarks_stage(exams: tuple[Benchmark, ...]) -> Stage:
    failed = [each.task for each in exams if each.verdict == "fail"]
    return Stage(
        name="benchmarks", verdict="fail" if failed else "pass",
        detail=f"Failed: {', '.join(failed)}." if failed else "Both benchmarks are within their margins.",
        proves=() if failed else ("The score of the release is not below the native one by more than the margin.",),
        leaves_open=("Tasks of other kinds.",),
    )  # fmt: skip


def behaviour() -> Stage:
    names = ("ends in a loop", "cut off at the limit of tokens", "breaks the chat format", "no valid tool call")
    rates = tuple(
        RateFigures(
            name=name, port=n, port_of=80, native=1, native_of=80, difference=(n - 1) * 1.25, low=-4 + n, high=3.0 + n,
            verdict="pass",
        )
        for n, name in enumerate(names)
    )  # fmt: skip
    figures = BehaviourFigures(
        margin=10, prompts=32, repeats=8, native_stack="8 x H200", golden_pairs=4, golden_differing=(),
        token_mismatches=(), rates=rates,
    )  # fmt: skip
    return Stage(
        name="behaviour", verdict="pass", detail="256 answers behave like the native model's.",
        proves=("All 32 prompts become the same tokens as on the native side.",),
        leaves_open=("Whether what the answers say is right.",), figures=figures.model_dump(mode="json"),
    )  # fmt: skip

"""An output folder to make sites of: releases, reports and nights as the stages write them, but no weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from flagrelease.records.manifest import (
    ElementCounts,
    FileRecord,
    LossRecord,
    Manifest,
    SourceRecord,
    TargetRecord,
    TensorRecord,
    ToolRecord,
)
from flagrelease.records.night import Night, NightChip, NightStep
from flagrelease.records.report import Report, Stage, verdict_of
from flagrelease.records.rules import STAGES, ValidationRules

LONG = "a" * 300
RTL = "שלום-עולם"
HOSTILE = (
    '"></title></style><script>window.broken=1</script><img src=x onerror="window.broken=1">{{ 7*7 }}&lt;\x1b[31m\u202e'
)
RECIPE: dict[str, Any] = {
    "schema_version": 1,
    "model": "tiny",
    "source": {"repo": "who/tiny", "revision": "v1", "license": "MIT", "path": "tiny"},
    "hubs": ["huggingface"],
    "releases": {
        "nvidia": [{"format": "fp8", "layout": "hf", "stack": "vllm"}],
        "mthreads": [{"format": "fp8", "layout": "hf", "stack": "vllm-musa"}],
        "ascend": [{"format": "bf16", "layout": "mp16", "stack": "flagos"}],
        "metax": [{"format": "bf16", "layout": "mp16", "stack": "flagos"}],
    },
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest(
    target: str = "fp8-hf", model: str = "tiny", tensors: int = 4, version: int = 0, recipe: Any = RECIPE, **more: Any
) -> Manifest:
    """A manifest with `tensors` tensors; those of another `version` differ in the first of them, and in config.json."""
    dtype, _, layout = target.rpartition("-")
    mp = None if layout == "hf" else int(layout.removeprefix("mp"))
    records = {f"layers.{n}.w": TensorRecord(dtype="BF16", shape=(4, 2), blake3=digest(f"{n}")) for n in range(tensors)}
    records["layers.0.w"] = TensorRecord(dtype="BF16", shape=(4, 2), blake3=digest(f"first of {version}"))
    loss = LossRecord(rows=4, exact_rows=3, elements=8, exact_elements=7, largest_error=0.01, rms_error=0.002)
    config = json.dumps({"model_type": "deepseek_v4", "version": version}).encode()
    files = (
        FileRecord(path="config.json", size=len(config), sha256=sha256(config)),
        FileRecord(path="model-00001-of-00001.safetensors", size=10**9 + version, sha256=digest(f"weights {version}")),
        *more.pop("files", ()),
    )
    values: dict[str, Any] = {
        "tool": ToolRecord(version="0.1.0"), "model": model, "recipe": recipe, "options": {"version": version},
        "target": TargetRecord(dtype=dtype, layout="hf" if mp is None else "mp", mp=mp),
        "source": SourceRecord(
            repo="who/tiny", revision="v1", license="MIT", identity=digest("i"), headers_sha256=digest("h"),
            config_sha256=digest("c"), contents_blake3=digest("b"), files=(), tensors={"layers.0.w": digest("s")},
        ),
        "plan": digest(f"plan {version}"), "elements": ElementCounts(copied=7, lost=1), "inexact": {"layers.0.w": 1},
        "losses": {"layers.0.w": loss}, "files": files, "tensors": records,
    }  # fmt: skip
    return Manifest(**values | more)


def report(of: str, chip: str, verdicts: dict[str, str] | None = None, kl: float = 0.004, **more: Any) -> Report:
    """A report of the manifest with digest `of`; `verdicts`: stage -> verdict, `pass` by default."""
    rules = more.pop("rules", None) or ValidationRules(stages=("integrity", "weights", "logits"))
    given = verdicts or {}
    stages = tuple(
        _stage(name, given.get(name, "pass"), kl) for name in STAGES if name in rules.stages or name in given
    )
    return Report(
        schema_version=1, tool=ToolRecord(version="0.1.0"), manifest_sha256=of, chip=chip, rules=rules,
        verdict=verdict_of(rules, stages, ()), stages=stages, benchmarks=(),
        environment={"torch": "2.13", "device": "a card"} | more.pop("environment", {}),
        commands=more.pop("commands", (f"flagrelease validate fp8-hf --chip {chip}",)),
    )  # fmt: skip


def _stage(name: str, verdict: Any, kl: float) -> Stage:
    figures: dict[str, Any] = {}
    if name == "weights":
        figures = {"checks": [{"name": "source", "status": "pass"}]}
    if name == "logits":
        measure = {"name": "mean_kl", "label": "mean KL, nats", "value": kl, "at_most": 0.01, "verdict": verdict}
        figures = {"comparisons": [{"reference": "native", "replay": "prefill", "measures": [measure]}]}
    return Stage(
        name=name, verdict=verdict, detail=f"{name} ended with {verdict}.",  # type: ignore[arg-type]
        proves=(f"{name} proves something.",) if verdict == "pass" else (), leaves_open=("The rest.",), figures=figures,
    )  # fmt: skip


@dataclass
class Output:
    """Writes an output folder; what stood before is put aside as `run` does it."""

    path: Path
    model: str = "tiny"
    began: datetime = datetime(2026, 11, 1, 22, 0, tzinfo=timezone.utc)
    history: list[str] = field(default_factory=list)

    def release(self, made: Manifest, name: str = "fp8-hf") -> str:
        """Write a release without its weights; return its manifest's digest."""
        folder = self.path / name
        self._aside(folder / "manifest.json", self.path / "history" / name, folder / "config.json")
        folder.mkdir(parents=True, exist_ok=True)
        content = made.to_json()
        (folder / "config.json").write_text(
            json.dumps({"model_type": "deepseek_v4", "version": made.options.get("version", 0)})
        )
        (folder / "manifest.json").write_bytes(content)
        return sha256(content)

    def report(self, made: Report, release: str = "fp8-hf", chip: str | None = None) -> str:
        """Write a report and its page; return the report's digest."""
        name = f"{release}-{chip or made.chip}"
        folder = self.path / "validation" / name
        self._aside(folder / "report.json", self.path / "history" / name)
        folder.mkdir(parents=True, exist_ok=True)
        content = made.model_dump_json(indent=1).encode()
        (folder / "report.json").write_bytes(content)
        (folder / "report.html").write_text(f"<!doctype html><html lang=en><title>r</title><p>{made.verdict}</html>")
        return sha256(content)

    def night(self, chips: list[NightChip], minutes: float | None = 90, **more: Any) -> str:
        """Write the record of the next night; return its name."""
        name = self.began.strftime("%Y%m%dT%H%M%SZ")
        ended = None if minutes is None else self.began + timedelta(minutes=minutes)
        values: dict[str, Any] = {
            "began": self.began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "ended": None if ended is None else ended.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tool": ToolRecord(version="0.1.0"), "chips": tuple(chips), "model": self.model,
                "commit": "c" * 40, "recipe": "tiny.yaml", "recipe_sha256": digest("recipe"), "source": digest("i"),
                "first": "convert", "last": "publish", "target": "hf", "verdict": "done",
                "summary": "All came through.", "exit_code": 0,
        }  # fmt: skip
        record = Night(**values | more)
        (self.path / "nights").mkdir(parents=True, exist_ok=True)
        (self.path / "nights" / f"{name}.json").write_bytes(record.to_json())
        self.began += timedelta(days=1)
        return name

    def _aside(self, path: Path, history: Path, *others: Path) -> None:
        if path.is_file():
            place = history / f"{self.began:%Y%m%dT%H%M%SZ}-{sha256(path.read_bytes())[:12]}"
            place.mkdir(parents=True)
            for one in (path, *others):
                one.rename(place / one.name)
            self.history.append(str(place))


def entry(
    chip: str,
    manifest_sha256: str | None,
    report_sha256: str | None,
    verdict: Any,
    release: str = "fp8-hf",
    **more: Any,
) -> NightChip:
    """What a night says of a release of a chip."""
    steps = more.pop("steps", None) or {
        "convert": step("done", seconds=600, speed=2e9), "verify": step("done", seconds=300, speed=4e9, kept=True),
        "validate": step("done" if verdict == "pass" else "failed", seconds=3000),
    }  # fmt: skip
    return NightChip(
        chip=chip, release=release, manifest_sha256=manifest_sha256, report_sha256=report_sha256, verdict=verdict,
        bytes=None if manifest_sha256 is None else 10**9, history=(), steps=steps,
        **{"stack": "vllm", "repository": f"FlagRelease/tiny-{chip}-FlagOS"} | more,
    )  # fmt: skip


def step(status: Any, seconds: float = 1, speed: float | None = None, kept: bool = False, why: str = "") -> NightStep:
    return NightStep(
        status=status, kept=kept, why=why, detail=f"ended as {status}", seconds=seconds, bytes_per_second=speed
    )


def week(path: Path) -> Output:
    """Three nights: all pass; weights are made again, and a measure moves; a chip fails, one is not converted."""
    out = Output(path)
    first, bf16 = out.release(manifest()), out.release(manifest("bf16-mp16"), "bf16-mp16")
    reports = {chip: out.report(report(first, chip)) for chip in ("nvidia", "mthreads")}
    ascend = out.report(report(bf16, "ascend", {"logits": "not-run"}), "bf16-mp16")
    third = ("ascend", bf16, ascend, "cannot-tell", "bf16-mp16")
    out.night([entry(chip, first, reports[chip], "pass") for chip in reports] + [entry(*third)])
    second = out.release(manifest(version=1))
    reports["nvidia"] = out.report(report(second, "nvidia", kl=0.006))
    why = {"convert": step("done", 700, 1.8e9, why="the recipe changed"), "validate": step("done", 3100)}
    chips = [
        entry("nvidia", second, reports["nvidia"], "pass", steps=why),
        entry("mthreads", second, reports["mthreads"], "pass"),
    ]
    out.night([*chips, entry(*third)], 120, recipe_sha256=digest("another recipe"), commit="d" * 40)
    rules = ValidationRules(stages=("integrity", "weights", "logits", "behaviour"))
    failed = out.report(report(second, "nvidia", {"logits": "fail", "behaviour": "not-run"}, kl=0.5, rules=rules))
    broken = {"convert": step("failed")}
    chips = [
        entry("nvidia", second, failed, "fail"), entry("mthreads", second, reports["mthreads"], "pass"), entry(*third),
        entry("hygon", None, None, None, "int8-hf", steps=broken, stack="hygon-bw1000"),
    ]  # fmt: skip
    out.night(
        chips, None, verdict="failed", summary="nvidia failed its validation; hygon was not converted.", exit_code=5
    )
    return out

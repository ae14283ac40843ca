"""How far each release format of the trained small model is from the native run and from the BF16 oracle.

    python benchmarks/format_alignment.py                    # 8 documents of each kind, some minutes on two cores
    python benchmarks/format_alignment.py --per-file 22 --decode 40 --work FOLDER

Every format is converted and run twice over the same documents: with the numerics of its serving stacks, which round
activations, and with `bf16` numerics, where only what the weights lost can make a difference. Also printed: how many
rows and elements of the weights are exact, from the manifests, and the same for FP4 tensors whose numbers were drawn
from known distributions and quantised by DeepSeek's rule. Prints Markdown for benchmarks/format-alignment_*.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from convert import commit, machine

from flagrelease import cli, engine
from flagrelease.convert.codecs.decoder import F64
from flagrelease.convert.codecs.fp4 import FP4_DECODER
from flagrelease.convert.codecs.quantise import encode
from flagrelease.convert.codecs.rows import RowFigures, RowRule, quantise_rows
from flagrelease.convert.codecs.scales import e8m0_values, exponents_of
from flagrelease.engine.numerics import NumericsName
from flagrelease.formats.formats import FP8_CHANNEL, INT8
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.records.manifest import read_manifest
from flagrelease.records.recipe import read_recipe
from flagrelease.records.rules import LogitsRules
from flagrelease.validate.logits.baseline import Baseline, Reference
from flagrelease.validate.logits.bootstrap import draw_weights
from flagrelease.validate.logits.documents import Document
from flagrelease.validate.logits.record import read_set, record_baseline
from flagrelease.validate.logits.replay import FiguresRun, KeptRun, Replayer, Shape
from flagrelease.validate.logits.sums import sum_up

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "examples" / "tiny" / "flagrelease-tiny-v4"
REFERENCES: tuple[Reference, ...] = ("native", "oracle")


@dataclass(frozen=True)
class Study:
    """The documents with the source's recorded runs, and the rules that they were recorded under."""

    baseline: Baseline
    documents: tuple[Document, ...]
    rules: LogitsRules

    def rows(self, name: str, folder: Path, numerics: NumericsName | None) -> list[str]:
        """Table rows of one release: a row for each reference."""
        model = engine.load(folder, numerics)
        replayer = Replayer(
            model, self.rules.replay, Shape(self.rules.replay.chunk), max(len(d.tokens) for d in self.documents)
        )
        runs: dict[Reference, list[FiguresRun]] = {reference: [] for reference in REFERENCES}
        for number, document in enumerate(self.documents):
            against: dict[str, KeptRun] = {reference: self.baseline.kept(reference, number) for reference in REFERENCES}
            outcome = replayer.run(document.tokens, against, keeping=False)
            for reference in REFERENCES:
                runs[reference].append(outcome.figures[reference])
        return [
            f"| {name} | {model.numerics.name} | {reference} | {' | '.join(self._cells(runs[reference]))} |"
            for reference in REFERENCES
        ]

    def _cells(self, runs: list[FiguresRun]) -> list[str]:
        """Of prefill, but for one: decoding has few tokens here, and easy ones."""
        figures = [run["prefill"] for run in runs]
        sums = sum_up(figures, self.rules.oracle)
        total, kl = sums.total, np.concatenate([each.kl for each in figures])
        mixed = sums.mixed(draw_weights(len(figures), self.rules.resamples, self.rules.seed))
        low, high = (float(np.quantile(mixed.mean_kl, q)) for q in (0.025, 0.975))
        decoded = sum_up([run["decode"] for run in runs], self.rules.oracle).total.mean_kl[0]
        return [
            f"{total.mean_kl[0]:.2e} ({low:.1e} to {high:.1e})",
            *(f"{np.quantile(kl, 0.99):.1e}", f"{kl.max():.1e}", f"{total.above[0]:.2%}", f"{total.top1[0]:.2%}"),
            *(f"{total.top1_clear[0]:.2%}", f"{total.perplexity[0]:+.2%}", f"{decoded:.1e}"),
        ]


def open_study(work: Path, per_file: int, decode: int) -> Study:
    """Record the source's runs over `per_file` documents of each of the three kinds."""
    texts = work / "documents.jsonl"
    program = ROOT / "examples" / "tiny" / "documents.py"
    subprocess.run([sys.executable, program, texts, "--per-file", str(per_file)], check=True)
    rules = read_recipe(ROOT / "recipes" / "tiny.yaml").validation.logits
    replay = rules.replay.model_copy(update={"documents": 3 * per_file, "decode_tokens": decode})
    rules = rules.model_copy(update={"replay": replay})
    baseline = record_baseline(SOURCE, work / "baseline", rules, documents=texts, device="cpu", operators="torch")
    return Study(baseline, read_set(SOURCE, texts, rules.replay)[1], rules)


def convert_all(work: Path) -> dict[str, Path]:
    """Each format in the hf layout, from one pass."""
    recipe = work / "formats.yaml"
    targets = [word for name in RELEASE_FORMATS for word in ("--target", f"{name}:hf")]
    recipe.write_text(
        "schema_version: 1\nmodel: flagrelease-tiny-v4\n"
        f"source: {{repo: flagrelease/tiny-v4, revision: v1, license: Apache-2.0, path: {json.dumps(str(SOURCE))}}}\n"
        "convert: {lossy_repack: allow}\nreleases: {ascend: {format: bf16, layout: hf}}\n"
    )
    code = cli.main(["convert", str(recipe), *targets, "--out", str(work / "releases"), "--json"])
    assert code == 0, code
    return {name: work / "releases" / f"{name}-hf" for name in RELEASE_FORMATS}


def weights_row(name: str, folder: Path) -> str:
    """What the manifest counts: inexact elements, and the weights that have some with their exact rows."""
    manifest = read_manifest(folder)
    losses, counts = manifest.losses.values(), manifest.elements
    every = counts.copied + counts.exact + counts.rounded + counts.repacked + counts.lost
    inexact = counts.rounded + counts.lost
    rms = max((loss.rms_error for loss in losses), default=0.0)
    largest = max((loss.largest_error for loss in losses), default=0.0)
    rows, exact = sum(loss.rows for loss in losses), sum(loss.exact_rows for loss in losses)
    shares = (f"{inexact:,} of {every:,}", f"{len(losses)}", f"{exact:,} of {rows:,}", f"{rms:.1e}", f"{largest:.1e}")
    return f"| {name} | {' | '.join(shares)} |"


Draw = Callable[[np.random.Generator, tuple[int, int]], F64]


def spread(generator: np.random.Generator, shape: tuple[int, int]) -> F64:
    """Gaussian numbers, groups of 32 scaled by 2^N(0, 0.5)."""
    groups = np.exp2(generator.normal(0, 0.5, (shape[0], shape[1] // 32))).repeat(32, axis=1)
    return np.asarray(generator.standard_normal(shape) * groups)


DISTRIBUTIONS: dict[str, Draw] = {
    "Gaussian": lambda g, shape: g.standard_normal(shape),
    "Laplace": lambda g, shape: g.laplace(size=shape),
    "t, 4 degrees of freedom": lambda g, shape: g.standard_t(4, shape),
    "Gaussian, groups spread 2^N(0, 0.5)": spread,
}
RULES = {
    "int8 best": RowRule(INT8, "best", False),
    "int8 power of two": RowRule(INT8, "power-of-two", False),
    "int8 absmax": RowRule(INT8, "absmax", False),
    "fp8-channel": RowRule(FP8_CHANNEL, "power-of-two", False),
}


def synthetic_rows(shape: tuple[int, int]) -> list[str]:
    """Exact rows and elements, and RMS error, of FP4 matrices of known distributions under the rules for rows."""
    lines = []
    for name, draw in DISTRIBUTIONS.items():
        codes, stored = encode(FP4_DECODER, draw(np.random.default_rng(0), shape), (1, 32))
        scales = e8m0_values()[stored]
        for rule, to in RULES.items():
            figures, out = RowFigures.of(shape[0]), np.zeros(shape, dtype=np.uint8)
            quantise_rows(codes, FP4_DECODER, scales, exponents_of(scales), (1, 16), to, figures, 0, out)
            rows = float((figures.inexact == 0).mean())
            elements = 1 - float(figures.inexact.sum()) / (shape[0] * shape[1])
            rms = float(np.sqrt(figures.squared_error.sum() / figures.squares.sum()))
            lines.append(f"| {name} | {rule} | {rows:.2%} | {elements:.3%} | {rms:.1e} |")
    return lines


def table(*columns: str) -> None:
    """Begin a table."""
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-file", type=int, default=8, help="documents of each of the three kinds")
    parser.add_argument("--decode", type=int, default=8, help="tokens at a document's end that are fed one by one")
    parser.add_argument("--work", type=Path, help="where releases and recorded runs stay; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="flagrelease-formats-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        releases = convert_all(work)
        study = open_study(work, options.per_file, options.decode)
        tokens = sum(len(document.tokens) - 1 for document in study.documents)
        print(f"\n- command: `python benchmarks/format_alignment.py {' '.join(sys.argv[1:])}`")
        print(f"- machine: {machine()}; date {datetime.date.today()}; commit {commit()}; load {os.getloadavg()[0]:.1f}")
        print(f"- torch {torch.__version__} on the CPU; {len(study.documents)} documents, {tokens} tokens in prefill")
        table("format", "elements not exact", "in weights", "exact rows of these", "RMS error, worst", "largest, worst")
        for name, folder in releases.items():
            print(weights_row(name, folder))
        table("numbers of an FP4 matrix", "rule", "rows exact", "elements exact", "RMS error")
        print("\n".join(synthetic_rows((1024, 4096))))
        columns = ("mean KL (95 %)", "99 % below", "largest", "above 0.1", "same first", "where sure", "perplexity")
        table("format", "numerics", "against", *columns, "mean KL, decode")
        for name, folder in releases.items():
            for numerics in dict.fromkeys((None, "bf16") if name != "bf16" else (None,)):
                print("\n".join(study.rows(name, folder, numerics)), flush=True)


if __name__ == "__main__":
    main()

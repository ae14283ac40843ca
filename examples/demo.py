"""`make demo`: the whole way on a small trained model: convert, prove, ask, compare with native, publish into a folder.

The model is flagrelease-tiny-v4 of examples/tiny: the architecture, formats and files of DeepSeek-V4, trained to look
things up in ledgers. It runs on a CPU, in one to two minutes on two cores.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from flagrelease.cli import main

OUT = Path("demo-out")
TINY = Path("examples/tiny")
CHECKPOINT = TINY / "flagrelease-tiny-v4"
RECIPE = Path("examples/demo.yaml")
RELEASES = {"ascend": "bf16-hf", "mthreads": "fp8-hf"}
QUESTIONS = 12  # held-out ones, for the benchmark; the next one is asked by itself
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Item:
    """A held-out question about a ledger, and its answer."""

    problem: str
    answer: str


def run(*words: str | Path, expect: int = 0) -> None:
    """Show a command, run it as a user would, and stop the demo if it ends otherwise than expected."""
    arguments = [str(word) for word in words]
    console.print(f"\n[bold cyan]$ flagrelease {shlex.join(arguments)}[/bold cyan]", markup=True)
    code = main(arguments)
    if code != expect:
        sys.exit(f"demo: exit code {code}, expected {expect}")


def say(text: str) -> None:
    """A word of the demo itself."""
    console.print(f"\n[bold]{text}[/bold]")


def held_out() -> list[Item]:
    """Questions that the model was not trained on."""
    with (TINY / "tasks" / "integers_year1.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, QUESTIONS + 1)]
    return [Item(row["problem"], row["answer"]) for row in rows]


def write_inputs(items: list[Item]) -> tuple[Path, Path]:
    """The benchmark's data, and texts of the kind the model was trained on for the logits stage."""
    questions, texts = OUT / "integers.jsonl", OUT / "documents.jsonl"
    rows = [{"problem": item.problem, "answer": item.answer} for item in items[:QUESTIONS]]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    subprocess.run([sys.executable, TINY / "documents.py", texts, "--per-file", "4"], check=True)
    return questions, texts


def ask(release: Path, numerics: str, item: Item) -> None:
    """Show what a model answers, and stop if it is wrong."""
    prompt = f"{item.problem}\nAnswer:"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        code = main([
            "generate", str(release), "--numerics", numerics, "--prompt", prompt, "--temperature", "0",
            "--max-tokens", "32", "--device", "cpu",
        ])  # fmt: skip
    answer = said.getvalue().strip()
    right = code == 0 and f"\\boxed{{{item.answer}}}" in answer
    console.print(f"  {release.name:<20} {numerics:<7} {answer}", markup=False)
    if not right:
        sys.exit(f"demo: the answer is {item.answer}")


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def demo() -> None:
    """All steps, in order."""
    OUT.mkdir(exist_ok=True)
    items = held_out()
    questions, texts = write_inputs(items)
    way = ["run", RECIPE, "--out", OUT, "--device", "cpu", "--data", f"integers={questions}", "--documents", texts]
    run("inspect", CHECKPOINT)
    say("For a chip that has no FP8 (ascend) and one that has (mthreads): converted, proved, compared with native.")
    run(*way)
    say("A held-out question, to the native model and to both releases:")
    console.print(f"  {items[-1].problem}", markup=False)
    ask(CHECKPOINT, "native", items[-1])
    for release in RELEASES.values():
        ask(OUT / release, release.removesuffix("-hf"), items[-1])
    say("When one bit of a release is wrong:")
    victim = next(iter(sorted((OUT / "bf16-hf").glob("*.safetensors"))))
    flip_a_bit(victim)
    try:
        run("verify", OUT / "bf16-hf", "--source", CHECKPOINT, expect=5)
    finally:
        flip_a_bit(victim)
    say("Published into a folder. The same command, run again, publishes what it finds finished:")
    run(*way, "--publish", OUT / "published", "--yes")
    published = sorted((OUT / "published").iterdir())
    run("verify", published[0], "--source", CHECKPOINT)
    say("To look at:")
    for chip, release in RELEASES.items():
        console.print(f"  report  {OUT / 'validation' / f'{release}-{chip}' / 'report.html'}")
    for folder in published:
        console.print(f"  card    {folder / 'README.md'}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # operators this small take longer on two threads than on one
    os.chdir(Path(__file__).resolve().parents[1])
    demo()

"""`make demo`: the whole way on a small trained model: convert, prove, ask, compare with native, publish into a folder.

The model is flagrelease-tiny-v4 of examples/tiny: the architecture, formats and files of DeepSeek-V4, trained to look
things up in ledgers. It runs on a CPU, in about a minute and a half on two cores, and says what it does as it goes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from flagrelease.cli import main

OUT = Path("demo-out")
TINY = Path("examples/tiny")
CHECKPOINT = TINY / "flagrelease-tiny-v4"
RECIPE = Path("examples/demo.yaml")
RELEASES = {"ascend": "bf16-hf", "mthreads": "fp8-hf"}
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
    console.print(f"\n[bold]{textwrap.fill(text, 100, subsequent_indent='   ')}[/bold]")


def held_out() -> Item:
    """A question that the model was not trained on."""
    with (TINY / "tasks" / "integers_year1.jsonl").open(encoding="utf-8") as lines:
        row = json.loads(next(lines))
    return Item(row["problem"], row["answer"])


def write_documents() -> Path:
    """Texts of the kind the model was trained on, for the stage that compares distributions of tokens."""
    texts = OUT / "documents.jsonl"
    subprocess.run([sys.executable, TINY / "documents.py", texts, "--per-file", "3"], check=True)
    return texts


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
    began = time.monotonic()
    OUT.mkdir(exist_ok=True)
    way: list[str | Path] = ["run", RECIPE, "--out", OUT, "--device", "cpu", "--documents", write_documents()]
    say(
        "1. The checkpoint: DeepSeek-V4's architecture and formats in 13 million parameters, with experts in "
        "FP4 and the rest in FP8."
    )
    run("inspect", CHECKPOINT)
    say(
        "2. One command for two chips: ascend has no FP8 and gets BF16, mthreads has it and gets FP8. Both "
        "come from one pass over the checkpoint. `verify` makes every weight again with a second decoder. The"
        " native model is recorded once, and each release is compared with it: distributions of tokens, "
        "questions about ledgers of two lengths, and whether answers loop or break the format. A verdict says"
        " where it was computed."
    )
    run(*way)
    item = held_out()
    say("3. A held-out question, to the native model and to both releases. All must answer it rightly:")
    console.print(f"  {item.problem}", markup=False)
    ask(CHECKPOINT, "native", item)
    for release in RELEASES.values():
        ask(OUT / release, release.removesuffix("-hf"), item)
    say("4. One bit of a release is flipped. `verify` must name the file and the tensor, and end with 5:")
    victim = next(iter(sorted((OUT / "bf16-hf").glob("*.safetensors"))))
    flip_a_bit(victim)
    try:
        run("verify", OUT / "bf16-hf", "--source", CHECKPOINT, expect=5)
    finally:
        flip_a_bit(victim)
    say(
        "5. The bit is back. The same command again finds everything done, and publishes what passed into a "
        "folder, with card, provenance and scripts. A stranger can verify what was published:"
    )
    run(*way, "--publish", OUT / "published", "--yes")
    published = sorted((OUT / "published").iterdir())
    run("verify", published[0], "--source", CHECKPOINT)
    run("site", OUT, "--out", OUT / "site")
    say(f"Done in {time.monotonic() - began:.0f} s. To look at:")
    console.print(f"  site    {OUT / 'site' / 'index.html'}: all releases and verdicts on one page")
    for chip, release in RELEASES.items():
        console.print(f"  report  {OUT / 'validation' / f'{release}-{chip}' / 'report.html'}")
    for folder in published:
        console.print(f"  card    {folder / 'README.md'}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # operators this small take longer on two threads than on one
    os.chdir(Path(__file__).resolve().parents[1])
    demo()

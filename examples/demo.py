"""`make demo`: the main job on a small checkpoint: look at it, plan, convert for every chip, prove, and catch a defect.

The checkpoint has the architecture, formats and files of DeepSeek-V4 and random weights.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from flagrelease.cli import main
from flagrelease.synthetic import tiny_config, write_checkpoint

OUT = Path("demo-out")
CHECKPOINT = OUT / "checkpoint"
RECIPE = Path("recipes/tiny.yaml")
console = Console(highlight=False, soft_wrap=True)


def run(*words: str | Path, expect: int = 0) -> None:
    """Show a command, run it as a user would, and stop the demo if it ends otherwise than expected."""
    arguments = [str(word) for word in words]
    console.print(f"\n[bold cyan]$ flagrelease {shlex.join(arguments)}[/bold cyan]")
    code = main(arguments)
    if code != expect:
        sys.exit(f"demo: exit code {code}, expected {expect}")


def flip_a_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def demo() -> None:
    """All steps, in order."""
    if not (CHECKPOINT / "config.json").is_file():
        write_checkpoint(CHECKPOINT, tiny_config())
    run("inspect", CHECKPOINT)
    run("plan", RECIPE)
    run("convert", RECIPE, "--out", OUT / "releases")
    for release in ("fp8-mp8", "bf16-mp16"):
        run("verify", OUT / "releases" / release, "--source", CHECKPOINT)
    console.print("\n[bold]And when one bit of one rank is wrong:[/bold]")
    victim = OUT / "releases" / "bf16-mp16" / "model5-mp16.safetensors"
    flip_a_byte(victim)
    run("verify", OUT / "releases" / "bf16-mp16", "--source", CHECKPOINT, expect=5)
    flip_a_byte(victim)
    console.print(f"\n[green]The releases of all eight chips are in {OUT}/releases, proved.[/green]")


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    demo()

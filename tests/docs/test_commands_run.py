"""README.md and docs/ done literally: each page's commands in order, on the small trained model under another name.

What a page says is not run is left out, and so are `pip` (tests/packaging installs into new environments), `make` (this
is `make test`), `pytest`, and the serving stacks' own programs. Everything else must end with 0, but
`doctor`, which ends with 4 where the chip that a page is about is not in this machine.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from shell_blocks import PAGES, ROOT, Command, commands_of

from flagrelease.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ELSEWHERE = {"pip", "make", "pytest", "vllm", "sglang"}
TINY = ROOT / "examples/tiny"
# A model of 13 million parameters reads and answers little, and a page's commands are about a large one.
VALIDATION = {
    "device": "any",
    "logits": {
        "replay": {"documents": 6, "tokens": 96, "long_tokens": 96, "decode_tokens": 8},
        "oracle": {"mean_kl": 0.02, "floors": 3, "top1_clear": 0.8, "margin": 0.5, "perplexity": 0.1},
        "native": {"mean_kl": 0.2, "top1_clear": 0.8, "margin": 2, "perplexity": 0.2},
        "rounded": 6, "min_documents": 6, "min_tokens": 100, "min_decode_tokens": 40,
    },
    "behaviour": {"prompts": 1, "repeats": 8, "max_tokens": 8, "margin": 60},
}  # fmt: skip
EXAM = {
    "dataset": "flagrelease/tiny-v4",
    "revision": "v1",
    "mode": "chat",
    "max_tokens": 48,
    "repeats": 4,
    "extension": 1,
}


def recipe() -> dict[str, object]:
    document = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text())
    letters = {**EXAM, "title": "GPQA", "kind": "multiple-choice", "files": ["gpqa.csv"], "margin": 60,
               "prompt": "{question}\n{options}\nAnswer:"}  # fmt: skip
    numbers = {**EXAM, "title": "AIME", "kind": "integer", "files": ["aime.jsonl"], "margin": 60,
               "prompt": "{question}\nAnswer:"}  # fmt: skip
    document["releases"] = {"mthreads": [{"format": "fp8", "layout": "mp8", "stack": "flagos"}]}
    document["validation"] = VALIDATION | {"benchmarks": {"gpqa": letters, "aime": numbers}}
    return document


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages suppose it: checkpoints, questions, recipes, and releases that earlier steps have made."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("DeepSeek-V4-Flash", "DeepSeek-V4-Flash-0731"):
        (folder / name).symlink_to(TINY / "flagrelease-tiny-v4")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    (folder / "recipes").mkdir()
    for name in ("deepseek-v4-flash", "deepseek-v4-flash-0731"):
        (folder / f"recipes/{name}.yaml").write_text(yaml.safe_dump(recipe()))
    choices = [json.loads(line) for line in (TINY / "tasks/multiple_choice.jsonl").read_text().splitlines()[:6]]
    with (folder / "gpqa_diamond.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, choices[0])
        writer.writeheader()
        writer.writerows(choices)
    integers = (TINY / "tasks/integers_year1.jsonl").read_text().splitlines(keepends=True)
    (folder / "aime25.jsonl").write_text("".join(integers[:6]))
    (folder / "in.jsonl").write_text('"Who are you?"\n')
    (folder / "tokens.jsonl").write_text("[0, 5, 17, 42]\n")
    for target in ("native:hf", "native:mp8", "bf16:hf"):
        words = ["convert", str(folder / "DeepSeek-V4-Flash"), "--target", target, "--out", str(folder / "releases")]
        assert main(words) == 0
    return folder


def run(command: Command, world: Path) -> None:
    """As a user types it; a server is asked to end as soon as it serves."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    serves = command.ours[:1] and command.ours[0][:1] == ["serve"]
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command.text}"], cwd=world, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    with process:
        for line in process.stdout:
            said.append(line)
            if serves and "serving" in line:
                process.send_signal(signal.SIGINT)
    right = (0, 4) if command.ours[:1] and command.ours[0][:1] == ["doctor"] else (0,)
    assert process.returncode in right, f"{command.text}\n{''.join(said)}"


def runs_here(command: Command) -> bool:
    return command.reason is None and command.parts[0][0] not in ELSEWHERE


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(map(runs_here, commands_of(page)))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_commands_of_a_page_in_their_order(page: Path, world: Path) -> None:
    for command in filter(runs_here, commands_of(page)):
        run(command, world)

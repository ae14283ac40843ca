"""The engine on the trained model of examples/tiny: releases answer held-out questions as the source does."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flagrelease import cli, engine
from flagrelease.engine.numerics import NumericsName

TINY = Path(__file__).parents[2] / "examples" / "tiny"
sys.path.insert(0, str(TINY))

import tasks  # noqa: E402
import tokenizer  # noqa: E402

SOURCE = TINY / "flagrelease-tiny-v4"
SAMPLE = 2  # items of every file


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    targets = [word for target in ("bf16:hf", "fp8:hf") for word in ("--target", target)]
    assert cli.main(["convert", str(SOURCE), "--out", str(out), *targets]) == 0
    return out


def items() -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts, and of the reference replies with their end."""
    encoder = tokenizer.load(SOURCE)
    picked = []
    for file in (tasks.MULTIPLE_CHOICE, tasks.INTEGERS_1, tasks.INTEGERS_2):
        for prompt, reply in random.Random(file).sample(tasks.read_items(tasks.FOLDER / file), SAMPLE):
            ids = tokenizer.encode(encoder, tokenizer.user_turn(prompt))
            picked.append((ids, tokenizer.encode(encoder, reply + tokenizer.EOS)))
    return picked


def right(folder: Path, numerics: NumericsName) -> int:
    """Items whose reply greedy decoding gives: the argmax at every position of the reply is its next token."""
    model = engine.load(folder, numerics, torch.bfloat16)
    count = 0
    for prompt, reply in items():
        chosen = model.logits(prompt + reply[:-1])[len(prompt) - 1 :].argmax(-1)
        count += chosen.tolist() == reply
    return count


@pytest.mark.parametrize("numerics", ["native", "bf16"])
def test_the_source_answers(numerics: NumericsName) -> None:
    assert right(SOURCE, numerics) >= len(items()) - 1


@pytest.mark.parametrize(("release", "numerics"), [("bf16-hf", "bf16"), ("fp8-hf", "fp8")])
def test_its_releases_answer(releases: Path, release: str, numerics: NumericsName) -> None:
    assert right(releases / release, numerics) >= len(items()) - 1


def test_a_release_with_the_halves_of_its_pairs_swapped_does_not_answer(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(SOURCE, damaged)
    for path in damaged.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if tensor.dtype == torch.int8:
                codes = tensor.view(torch.uint8)
                tensors[name] = (codes << 4 | codes >> 4).view(torch.int8)
        save_file(tensors, path)
    assert right(damaged, "native") <= 1

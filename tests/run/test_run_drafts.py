"""`flagrelease run` on the trained model with draft stages: releases with them and without, end to end."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from flagrelease import engine
from flagrelease.cli import main
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.numerics import NumericsName
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
sys.path.insert(0, str(TINY))

import tasks  # noqa: E402
import tokenizer  # noqa: E402

SOURCE = TINY / "flagrelease-tiny-v4-dspark"
RECIPE = ROOT / "recipes" / "tiny-dspark.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe: NVIDIA's release for vLLM, with the stages; Ascend's for FlagOS, without them, uncut."""
    document = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    document["source"]["path"] = str(SOURCE)
    document["validation"] = {"stages": ["integrity", "weights"]}
    nvidia, ascend = document["releases"]["nvidia"][0], document["releases"]["ascend"][-1]
    document["releases"] = {"nvidia": nvidia, "ascend": ascend | {"layout": "hf", "stack": None}}
    path = tmp_path_factory.mktemp("drafts") / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ran(recipe: Path) -> Path:
    """Made, proved, judged and published into a folder."""
    out = recipe.parent / "out"
    assert main(["run", str(recipe), "--out", str(out), "--publish", str(recipe.parent / "mirror"), "--yes"]) == 0
    return out


def replies(folder: Path, numerics: NumericsName, *, speculate: bool) -> tuple[list[str], Scheduler]:
    torch.set_num_threads(1)
    encoder = tokenizer.load(SOURCE)
    asked = tasks.read_items(tasks.FOLDER / tasks.INTEGERS_2)[:4]
    prompts = [tokenizer.encode(encoder, tokenizer.user_turn(prompt)) for prompt, _ in asked]
    model = engine.load(folder, numerics, torch.bfloat16, mtp=speculate)
    scheduler = Scheduler(Runner(model, 4, 320, speculate=speculate), Tokenizer(SOURCE))
    results = generate_all(scheduler, prompts, Sampling(temperature=0, max_tokens=48))
    return [result.text for result in results], scheduler


def shards(folder: Path) -> dict[str, str]:
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    weights: dict[str, str] = index["weight_map"]
    return weights


def test_one_release_keeps_the_stages_and_one_drops_them(ran: Path) -> None:
    kept, dropped = shards(ran / "fp8-hf"), shards(ran / "bf16-hf")
    assert {name for name in kept if name.startswith("mtp.")} == {name for name in shards(SOURCE) if "mtp." in name}
    assert not any(name.startswith("mtp.") for name in dropped)
    for folder, drafts, stages in (("fp8-hf", "keep", 3), ("bf16-hf", "drop", 0)):
        manifest = json.loads((ran / folder / "manifest.json").read_text(encoding="utf-8"))
        config = json.loads((ran / folder / "config.json").read_text(encoding="utf-8"))
        assert manifest["target"]["drafts"] == drafts
        assert len(config["compress_ratios"]) == 5 + stages
        assert ("dspark_block_size" in config) == (drafts == "keep")


@pytest.mark.slow
def test_both_answer_alike_and_the_kept_stages_draft(ran: Path) -> None:
    expected = [reply for _, reply in tasks.read_items(tasks.FOLDER / tasks.INTEGERS_2)[:4]]
    drafted, scheduler = replies(ran / "fp8-hf", "fp8", speculate=True)
    assert drafted == replies(ran / "bf16-hf", "bf16", speculate=False)[0] == expected
    assert scheduler.totals.accepted > 0.3 * scheduler.totals.drafted
    with pytest.raises(UsageError, match="draft"):
        engine.load(ran / "bf16-hf", "bf16", torch.bfloat16, mtp=True)


def test_a_stage_that_changed_by_one_bit_is_found(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = tmp_path / "fp8-hf"
    shutil.copytree(ran / "fp8-hf", release)
    name = "mtp.2.markov_head.markov_w1.weight"
    path = release / shards(release)[name]
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    begin = json.loads(content[8 : 8 + size])[name]["data_offsets"][0]
    content[8 + size + begin] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(release), "--source", str(SOURCE)]) == 5
    assert name in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_the_cards_tell_of_the_stages(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["publish", str(ran / "fp8-hf"), "--chip", "nvidia", "--to", str(tmp_path / "there"), "--dry-run"]
    assert main(words) == 0
    assert "model-00005-of-00005.safetensors" in capsys.readouterr().out
    assert not (tmp_path / "there").exists()
    kept, dropped = (
        (ran.parent / "mirror" / f"flagrelease-tiny-v4-dspark-{end}" / "README.md").read_text("utf-8")
        for end in ("FP8-nvidia-vllm", "ascend-FlagOS")
    )
    assert "| draft stages | left out: answers are the same, without speculation |" in dropped
    assert "left out" not in kept

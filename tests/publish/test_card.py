"""Cards and run files of every recipe and chip: golden files, both hubs' rules, scripts that run.

After a wanted change: FLAGRELEASE_WRITE_GOLDEN=1 pytest tests/publish/test_card.py, and read the difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from publish_release import RECIPES, manifest_of, report_for, write_release, write_report
from stack_records import records_of_format

from flagrelease.chips.table import get_chip, load_chips
from flagrelease.cli import main
from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.card import make_card
from flagrelease.publish.front_matter import check_card
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.hubs.registry import HUBS, find_licence
from flagrelease.publish.records import Records, read_records
from flagrelease.publish.run_files import compose_service, docker_flags, run_files
from flagrelease.records.manifest import Dtype, FileRecord
from flagrelease.records.recipe import read_recipe
from flagrelease.records.report import parse_report

GOLDEN = Path(__file__).parent / "golden"
# Cards of the releases with DSpark differ from those of the previews in names and sizes, but for draft stages.
_ALIKE = {"deepseek-v4-flash-0731": ["mthreads"], "deepseek-v4-pro-0813": ["ascend"], "tiny-dspark": ["ascend"]}
# DeepSeek-V4.1 has no release for FlagOS' engine
OF_V4 = [path for path in sorted(RECIPES.glob("*.yaml")) if "v4.1" not in path.stem]
CASES = [(path.stem, chip) for path in OF_V4 for chip in read_recipe(path).releases]


def records_of(recipe_name: str, chip: str, validated: bool = True) -> Records:
    recipe = read_recipe(RECIPES / f"{recipe_name}.yaml")
    ranks = next(int(one.layout.removeprefix("mp")) for one in recipe.releases[chip] if one.layout != "hf")
    files = [FileRecord(path=f"model{r}-mp{ranks}.safetensors", size=40 * 10**9, sha256="7" * 64) for r in range(ranks)]
    manifest = manifest_of(recipe_name, chip, tuple(files))
    content = b"{}\n"  # the cards name its digest, which shall not follow every new key of recipes
    report = None
    if validated:
        raw = json.dumps(report_for(content, chip)).encode()
        report = parse_report(raw, "report.json")
    return Records(
        Path(__file__).parent / "dspark_release", manifest, content, recipe, get_chip(chip),
        find_licence(manifest.source.license), report, b"{}" if validated else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "chip"),
    [case for case in CASES if case[1] in _ALIKE.get(case[0], [case[1]])],
    ids=lambda value: str(value),
)
def test_golden(recipe: str, chip: str) -> None:
    assert_golden(records_of(recipe, chip), GOLDEN / f"{recipe}-{chip}")


def test_golden_of_an_hf_release(tmp_path: Path) -> None:
    records = records_of_format(tmp_path / "r", "ascend", "bf16", size=570 * 10**9)
    assert_golden(records, GOLDEN / "deepseek-v4-flash-ascend-hf")


def test_golden_of_a_release_for_a_stack(tmp_path: Path) -> None:
    records = records_of_format(tmp_path / "r", "mthreads", "fp8", "vllm-musa", size=290 * 10**9)
    assert_golden(records, GOLDEN / "deepseek-v4-flash-mthreads-fp8-hf")


def assert_golden(records: Records, folder: Path) -> None:
    repo = records.wanted.repo
    contents = {f"README.{hub.name}.md": make_card(records, hub, repo) for hub in HUBS} | run_files(records)
    if os.environ.get("FLAGRELEASE_WRITE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents


@pytest.mark.parametrize(("recipe", "chip"), CASES, ids=lambda value: str(value))
def test_cards_hold_no_hole_and_no_path_of_this_machine(recipe: str, chip: str) -> None:
    for validated in (True, False):
        records = records_of(recipe, chip, validated)
        for hub in HUBS:
            text = make_card(records, hub, "FlagRelease/x").decode()
            assert not re.search(
                r"None|null|\{\{|\{[a-z_]+\}(?!-mp)|TODO|xxx|/work|/root|/home|localhost|\bnan\b", text
            )
            assert not re.search(r"\| *\|", text)
            assert ("without validation" in text) != validated


def test_figures_of_another_machine_are_said_to_prove_nothing_of_the_chip() -> None:
    records = records_of("deepseek-v4-flash", "ascend")
    assert records.report is not None
    assert b"prove nothing of this chip" not in make_card(records, HUGGING_FACE, "a/b")
    rules = records.report.rules.model_copy(update={"device": "any"})
    elsewhere = replace(records, report=records.report.model_copy(update={"rules": rules}))
    assert b"prove nothing of this chip" in make_card(elsewhere, HUGGING_FACE, "a/b")


def test_the_licence_is_the_sources() -> None:
    flash, tiny = records_of("deepseek-v4-flash", "ascend"), records_of("tiny", "ascend")
    assert check_card(make_card(flash, HUGGING_FACE, "a/b").decode(), HUGGING_FACE)["license"] == "mit"
    assert check_card(make_card(flash, MODELSCOPE, "a/b").decode(), MODELSCOPE)["license"] == "MIT License"
    assert check_card(make_card(tiny, HUGGING_FACE, "a/b").decode(), HUGGING_FACE)["license"] == "apache-2.0"


def test_an_hf_release_is_for_as_many_ranks_as_cut_it(tmp_path: Path) -> None:
    """570 GB are 10 cards of 64 GiB; 10 do not divide 64 heads, 16 do."""
    records = records_of_format(tmp_path / "r", "ascend", "bf16", size=570 * 10**9)
    assert (records.cards, records.nodes) == (16, 2)
    assert records_of_format(tmp_path / "r", "nvidia", "fp8").cards == 1
    for size in range(10, 600, 35):
        cards = records_of_format(tmp_path / "r", "nvidia", "fp8", size=size * 10**9).cards
        assert 64 % cards == 0
        assert cards * 96 * 2**30 * 0.9 >= size * 10**9


@pytest.mark.parametrize(
    ("chip", "name"), [("ascend", "bf16"), ("nvidia", "bf16"), ("hygon", "bf16"), ("nvidia", "fp8")]
)
def test_transformers_is_named_where_it_reads_the_release(chip: str, name: Dtype, tmp_path: Path) -> None:
    text = make_card(records_of_format(tmp_path / "r", chip, name), HUGGING_FACE, "a/b").decode()
    assert ("from transformers import" in text) == (name == "bf16")
    module = get_chip(chip).torch_module
    assert (f"import {module}" in text) == (name == "bf16" and module is not None)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")


def test_a_release_for_ranks_names_no_other_engine() -> None:
    text = make_card(records_of("deepseek-v4-flash", "ascend"), HUGGING_FACE, "a/b").decode()
    assert "Other engines" not in text
    assert "Serving stacks" not in text
    assert "vllm serve" not in text


def test_only_languages_of_the_recipe_are_claimed() -> None:
    for hub in HUBS:
        flash, tiny = (
            make_card(records_of(name, "ascend"), hub, "a/b").decode() for name in ("deepseek-v4-flash", "tiny")
        )
        assert check_card(flash, hub)["language"] == ["en", "zh"]
        assert "language" not in check_card(tiny, hub)


def test_huggingface_reads_the_card_as_it_is_meant() -> None:
    card = ModelCard(make_card(records_of("deepseek-v4-flash", "mthreads"), HUGGING_FACE, "a/b").decode())
    assert card.data.license == "mit"
    assert card.data.base_model == "deepseek-ai/DeepSeek-V4-Flash"
    assert card.data.library_name is None  # mp files are not for transformers
    (result,) = card.data.eval_results or ()
    assert (result.dataset_type, result.metric_value) == ("Idavidrein/gpqa", 70.2)
    assert "n = 198, 8 repeats, 95% interval 66.1 to 74" in str(result.metric_name)


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"(?s)^---.*?---\n", "", "no metadata"),
        (r"license: .*", "license: gpl", "license 'gpl'"),
        (r"license: .*", "", "license is missing"),
        (r"base_model: .*", "base_model:", "base_model is blank"),
        (r"base_model: .*", "base_model: DeepSeek V4", "is no repository"),
        (r"base_model_relation: .*", "base_model_relation: copy", "relation 'copy'"),
        (r"tags:\n", "tags: moe\nother:\n", "other is no field"),
        (r"language:\n- en\n- zh\n", "language: []\n", "language is blank"),
        (r"language:", "language: [", "not YAML"),
    ],
)
def test_the_check_sees_planted_faults(hub: Hub, old: str, new: str, message: str) -> None:
    text = make_card(records_of("deepseek-v4-flash", "nvidia"), hub, "a/b").decode()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    with pytest.raises(VerificationError, match=message):
        check_card(changed, hub)


@pytest.mark.parametrize("key", ["task", "dataset", "metrics"])
def test_the_check_sees_a_broken_model_index(key: str) -> None:
    text = make_card(records_of("deepseek-v4-flash", "nvidia"), HUGGING_FACE, "a/b").decode()
    data: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    data["model-index"][0]["results"][0].pop(key)
    with pytest.raises(VerificationError, match=f"without {key}"):
        check_card("---\n" + yaml.safe_dump(data) + "---\n", HUGGING_FACE)


@pytest.mark.parametrize("chip", load_chips())
def test_every_docker_flag_has_a_compose_key(chip: str) -> None:
    """The compose file says the same as the docker command: translated back, flag by flag."""
    records = records_of("deepseek-v4-flash", chip)
    flags = docker_flags(records)
    service = compose_service(flags)
    back = {"environment": "--env", "devices": "--device", "volumes": "--volume", "network_mode": "--network"}
    again = set()
    for key, value in service.items():
        option = back.get(key, "--" + key.replace("_", "-"))
        if value is True:
            again.add(option)
        elif isinstance(value, dict):
            again |= {f"--ulimit={name}={limit}" for name, limit in value.items()}
        else:
            again |= {f"{option}={item}" for item in (value if isinstance(value, list) else [value])}
    assert again == set(flags)


def test_an_unknown_docker_flag_is_refused() -> None:
    with pytest.raises(UsageError, match="--pid=host"):
        compose_service(("--pid=host",))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.sh")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_are_clean(path: Path) -> None:
    subprocess.run(["shellcheck", "--severity=style", str(path)], check=True, env=_path())


def test_shellcheck_sees_a_fault(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("#!/usr/bin/env bash\ncd $1\n")
    result = subprocess.run(["shellcheck", str(tmp_path / "x.sh")], env=_path(), capture_output=True, check=False)
    assert result.returncode == 1


def _path() -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture
def recorded(tmp_path: Path) -> Any:
    """Runs a script with a torchrun that writes down its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "torchrun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (programs / "torchrun").chmod(0o755)

    def run(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(script), *arguments], env={"PATH": f"{programs}:/usr/bin:/bin"} | variables,
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip

    return run


def scripts(tmp_path: Path, recipe: str, chip: str) -> Path:
    folder = tmp_path / "a release"  # with a blank: quoting
    folder.mkdir()
    for name, content in run_files(records_of(recipe, chip)).items():
        (folder / name).write_bytes(content)
    return folder


def test_one_node_serves_and_generates(tmp_path: Path, recorded: Any) -> None:
    folder = scripts(tmp_path, "deepseek-v4-flash", "mthreads")
    served = recorded(folder / "run_mp8.sh").stdout.splitlines()
    base = ["--nproc-per-node", "8", "-m", "flagrelease"]
    assert served == [*base, "serve", str(folder), "--name", "DeepSeek-V4-Flash"]
    asked = recorded(folder / "run_mp8.sh", "generate", "--prompt", "who are you?").stdout.splitlines()
    assert asked == [*base, "generate", str(folder), "--prompt", "who are you?"]


def test_several_nodes(tmp_path: Path, recorded: Any) -> None:
    folder = scripts(tmp_path, "deepseek-v4-flash", "ascend")
    assert not (folder / "run_mp16.sh").exists()  # a node has 8 cards
    done = recorded(folder / "run_node.sh", MASTER_ADDR="10.0.0.1", NODE_RANK="1")
    assert done.stdout.splitlines() == [
        "--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "8", "--master-addr", "10.0.0.1",
        "--master-port", "29500", "-m", "flagrelease", "serve", str(folder),
        "--name", "DeepSeek-V4-Flash",
    ]  # fmt: skip
    four = recorded(folder / "run_node.sh", MASTER_ADDR="a", NODE_RANK="0", NODES="4", CARDS="4", PORT="1")
    assert four.stdout.splitlines()[1:6:4] == ["4", "4"]
    wrong = recorded(folder / "run_node.sh", MASTER_ADDR="a", NODE_RANK="0", NODES="3")
    assert wrong.returncode == 2
    assert "must be 16" in wrong.stderr
    assert "address of the first node" in recorded(folder / "run_node.sh", NODE_RANK="0").stderr


def test_the_engine_knows_the_commands_of_the_scripts() -> None:
    """The scripts' options are parsed by the real command line, up to the folder that is not there."""
    for command in ("serve", "generate"):
        done = subprocess.run(
            [sys.executable, "-m", "flagrelease", command, "--help"], capture_output=True, text=True, check=True
        )
        assert ("--name" if command == "serve" else "--prompt") in done.stdout


def test_zhenwu_has_sixteen_cards_and_no_image() -> None:
    files = run_files(records_of("deepseek-v4-flash", "zhenwu"))
    assert sorted(files) == ["run_mp16.sh", "run_node.sh"]
    assert "docker" not in make_card(records_of("deepseek-v4-flash", "zhenwu"), HUGGING_FACE, "a/b").decode()


def test_container_files_say_that_nobody_built_them() -> None:
    for path in [*GOLDEN.glob("*/Containerfile"), *GOLDEN.glob("*/compose.yaml")]:
        assert "nobody has built or started it" in path.read_text()


def test_a_written_release_gets_its_card(tmp_path: Path) -> None:
    release = write_release(tmp_path / "r")
    records = read_records(release, get_chip("nvidia"), write_report(release, tmp_path / "report.json"), False)
    text = make_card(records, HUGGING_FACE, "FlagRelease/x").decode()
    assert records.manifest_sha256 in text
    assert "1,000 kept bit for bit, 2,000 decoded to BF16 without rounding" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_the_library_of_the_card_loads_the_release(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = RECIPES.parent / "examples" / "tiny" / "flagrelease-tiny-v4"
    recipe = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    recipe["source"]["path"] = str(source)
    recipe["releases"] = {"ascend": {"dtype": "bf16", "layout": "hf"}, "nvidia": {"dtype": "fp8", "layout": "hf"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["convert", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    cards, libraries = {}, {}
    for chip, folder in (("ascend", "bf16-hf"), ("nvidia", "fp8-hf")):
        records = read_records(tmp_path / "out" / folder, get_chip(chip), None, True)
        card = make_card(records, HUGGING_FACE, "a/b").decode()
        cards[chip], libraries[chip] = card, ModelCard(card).data.library_name
    assert libraries == {"ascend": "transformers", "nvidia": None}
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out" / "bf16-hf", output_loading_info=True, dtype=torch.bfloat16
    )
    assert not any(info.values())
    assert model(torch.tensor([[0, 5, 6, 7, 8]])).logits.isfinite().all()
    (block,) = re.findall(r"```python\n(.*?)```", cards["ascend"], re.DOTALL)
    words = block.replace("import torch_npu", "pass").replace(', device_map="auto"', "")  # no chip, no accelerate here
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=tmp_path / "out" / "bf16-hf", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "The capital of France is" in done.stdout

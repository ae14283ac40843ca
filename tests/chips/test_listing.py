"""`flagrelease chips`: rows by hand-made arithmetic, commands that the real command line parses, and README's table."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from flagrelease.chips.launch import cards_for
from flagrelease.chips.listing.markdown import quickstart, readme_table
from flagrelease.chips.listing.progress import progress, progress_of
from flagrelease.chips.listing.rows import find_your_chip
from flagrelease.chips.listing.sizes import planned_sizes
from flagrelease.chips.stacks import load_stacks
from flagrelease.chips.table import load_chips
from flagrelease.cli import command_line, main
from flagrelease.records.named import shipped_recipes
from flagrelease.records.recipe import read_recipe

ROOT = Path(__file__).parents[2]


def test_every_release_of_the_newest_recipes_has_a_row() -> None:
    rows = {(row.chip, need.model, need.release) for row in find_your_chip() for need in row.needs}
    for name in ("deepseek-v4-flash-0731", "deepseek-v4-pro-0813", "deepseek-v4.1-flash"):
        recipe = read_recipe(shipped_recipes()[name])
        wanted = {(one.chip.id, recipe.model, one.spec.name) for one in recipe.chosen()}
        assert wanted == {row for row in rows if row[1] == recipe.model}
    assert {row.chip for row in find_your_chip()} == set(load_chips())


def test_sizes_are_there_for_every_shipped_release_and_near_the_published_totals() -> None:
    for name, path in shipped_recipes().items():
        if name.startswith("deepseek"):
            recipe = read_recipe(path)
            assert {one.spec.name for one in recipe.chosen()} == set(planned_sizes()[recipe.model].releases)
    flash = planned_sizes()["DeepSeek-V4-Flash-0731"].releases
    # Tensors alone, by the formulas of the fact sheets that give the published sizes; headers come on top.
    for release, tensors in (("int8-hf", 307_732_157_432), ("int8-experts-hf", 312_483_415_032)):
        assert tensors < flash[release].bytes < tensors * 1.0001
    ranks = flash["fp8-mp8"]
    assert ranks.rank_bytes is not None
    assert 0 <= 8 * ranks.rank_bytes - ranks.bytes < 1e5, "ranks differ in the lengths of their headers only"


@pytest.mark.parametrize(
    ("weight_bytes", "memory", "cards"),
    [(306e9, 96, 4), (306e9, 80, 4), (308e9, 64, 8), (1.66e12, 64, 32), (1.66e12, 144, 16), (1, 64, 1), (62e9, 64, 2)],
)
def test_the_fewest_cards(weight_bytes: float, memory: int, cards: int) -> None:
    assert cards_for(int(weight_bytes), memory) == cards


_FAMILIES = {"flash-0731": "deepseek_v4", "pro-0813": "deepseek_v4", "v4.1-flash": "deepseek_v41"}


def test_the_commands_are_commands() -> None:
    """Each is parsed by the real command line, or is the launch of its stack behind its variables."""
    commands: Any = command_line().commands
    for row in find_your_chip():
        for need in row.needs:
            for part in (need.convert, need.start.partition(" && ")[0]):
                words = shlex.split(part)
                if words[0] == "flagrelease":
                    commands[words[1]].make_context(words[1], words[2:])
                elif (launch := load_stacks()[row.stack].launch_of(_FAMILIES[need.recipe])) is not None:
                    program = [word for word in words if not re.match("[A-Z][A-Z0-9_]*=", word)]
                    usual = shlex.split(launch.command)
                    assert program[: len(usual)] == usual
                    assert f"releases/{need.release}" in program
                    parallel = [word for word in program if word.startswith(("--tensor-parallel-size=", "--tp="))]
                    assert [int(word.partition("=")[2]) for word in parallel] == [need.cards]
                else:
                    assert part == f"as {row.stack_title} says; no source has its command"


def test_a_model_of_another_family_is_started_as_its_own_sources_say() -> None:
    """V4's launch would name V4's tokenizer."""
    (row,) = (row for row in find_your_chip() if row.v41_flash is not None)
    assert (row.chip, row.stack, row.format, row.flash, row.pro) == ("nvidia", "vllm", "native", None, None)
    assert (row.verdict, row.mark) == ("loads", "stated")
    need = row.v41_flash
    assert need is not None
    assert need.cards == 8, "475 GiB on cards of 96"
    assert need.start == (
        "VLLM_ENGINE_READY_TIMEOUT_S=3600 vllm serve releases/native-hf --served-model-name DeepSeek-V4.1-Flash "
        "--tokenizer-mode=deepseek_v41 --tensor-parallel-size=8"
    )


def test_what_is_known_of_progress_names_what_there_is() -> None:
    for entry in progress():
        assert entry.chip in load_chips()
        assert (ROOT / entry.record).is_file()
        if entry.model is not None:
            assert entry.release in planned_sizes()[entry.model].releases
    assert progress_of("ascend", "DeepSeek-V4-Flash-0731", "bf16-mp16") is None
    run = progress_of("nvidia", "DeepSeek-V4-Flash-0731", "fp8-hf")
    assert run is not None
    assert run.state == "planned", "random weights are no release of the model"


def test_all_chips_as_a_table_and_as_a_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["chips"]) == 0
    said = capsys.readouterr().out
    assert all(chip in said for chip in load_chips())
    assert all(stack in said for stack in load_stacks())
    assert main(["chips", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["chips"]) == set(load_chips())
    assert len(told["releases"]) == len(find_your_chip())
    forms = {stack["id"]: stack["forms"] for stack in told["stacks"]}
    assert forms["vllm"]["fp8-e8m0"] == "wrong"


def test_one_chip_in_detail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chips", "moore"]) == 0, "an alias of mthreads"
    said = " ".join(capsys.readouterr().out.split())
    assert "mthreads:fp8-hf" in said
    assert "flagrelease serve releases/fp8-mp8" in said
    assert "FlagTree 0.6.0+mthreads3.6 miscompiles flash attention" in said
    assert main(["chips", "mthreads", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["chip"]["torch_device"] == "musa"
    assert {row["chip"] for row in told["releases"]} == {"mthreads"}
    assert told["releases"][0]["flash"]["cards"] == 8, "what vllm-musa's own command takes; the memory of 4 would do"
    assert main(["chips", "abacus"]) == 2


def between(path: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", (ROOT / path).read_text(), re.DOTALL)
    assert found is not None, path
    return found[1]


def test_readme_and_quickstart_are_made_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    hint = "python tests/chips/test_listing.py writes both again"
    assert between("README.md", "chips") == readme_table(), hint
    assert between("docs/quickstart.md", "chips") == quickstart().rstrip("\n"), hint
    assert main(["chips", "--markdown"]) == 0
    assert capsys.readouterr().out == readme_table() + "\n"
    assert len({line.count(" | ") for line in readme_table().splitlines() if "---" not in line}) == 1


def test_the_overview_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # A product's name was broken into three lines, and `int8-experts` in two.
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["chips"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = lines[: lines.index("")]
    assert len([line for line in rows if line.split() and line.split()[0] in load_chips()]) == len(find_your_chip())
    assert len(rows) <= len(find_your_chip()) + 2


if __name__ == "__main__":
    for page, text in (("README.md", readme_table()), ("docs/quickstart.md", quickstart().rstrip("\n"))):
        head, begin, rest = (ROOT / page).read_text().partition("<!-- chips -->\n")
        (ROOT / page).write_text(head + begin + text + "\n" + rest[rest.index("<!-- end of chips -->") :])

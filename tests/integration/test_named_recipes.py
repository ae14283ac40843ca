"""Recipes by name, from any folder, and out of an installed wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from flagrelease.cli import command_line, main
from flagrelease.errors import UsageError
from flagrelease.records.named import find_recipe, shipped_recipes
from flagrelease.records.recipe import read_recipe

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "tiny" / "flagrelease-tiny-v4"


def test_every_file_of_recipes_is_shipped_by_its_name() -> None:
    assert sorted(shipped_recipes()) == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    for name, path in shipped_recipes().items():
        assert find_recipe(name) == path
        assert read_recipe(path).model


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("flash", "deepseek-v4-flash"),
        ("pro-0813", "deepseek-v4-pro-0813"),
        ("deepseek-v4-flash-0731", "deepseek-v4-flash-0731"),
        ("DeepSeek-V4-Flash-0731", "deepseek-v4-flash-0731"),
        ("v4.1-flash", "deepseek-v4.1-flash"),
        ("DeepSeek-V4.1-Flash", "deepseek-v4.1-flash"),
        ("tiny", "tiny"),
    ],
)
def test_names_for_short_and_as_the_model(word: str, stem: str) -> None:
    assert find_recipe(word).name == f"{stem}.yaml"


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("flash").is_absolute()
    (tmp_path / "flash").mkdir()
    assert find_recipe("flash") == Path("flash")


def test_what_is_neither_is_refused_with_the_names() -> None:
    with pytest.raises(UsageError, match=r"flsh: no such file or folder.*deepseek-v4-pro.*did you mean flash\?"):
        find_recipe("flsh")


ASKED = {
    "plan": ["plan", "flsh"],
    "convert": ["convert", "flsh", "--out", "out"],
    "run": ["run", "flsh", "--out", "out"],
    "validate": ["validate", "nowhere", "--chip", "mthreads", "--recipe", "flsh"],
    "record": ["baseline", "record", "nowhere", "--out", "out", "--recipe", "flsh"],
    "scripts": ["scripts", "nowhere", "--chip", "mthreads", "--out", "out", "--recipe", "flsh"],
    "publish": ["publish", "nowhere", "--chip", "mthreads", "--to", "hf", "--recipe", "flsh"],
}


def test_the_table_has_every_command_that_takes_a_recipe() -> None:
    found: set[str] = set()
    pending = [command_line()]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        takes = [one for one in command.params if "recipe" in (getattr(one, "help", None) or "").lower()]
        if command.name and any(one.name in ("recipe", "source") for one in takes):
            found.add(command.name)
    assert found == set(ASKED)


@pytest.mark.parametrize("words", ASKED.values(), ids=list(ASKED))
def test_every_command_takes_a_recipe_by_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "did you mean flash?" in capsys.readouterr().err


def test_a_plan_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "tiny", "--checkpoint", str(SOURCE), "--chip", "mthreads:fp8-hf"]) == 0
    assert "fp8-hf" in capsys.readouterr().out


@pytest.mark.slow  # 35 s of a busy core: builds a wheel
def test_a_wheel_brings_recipes_and_every_other_file(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("flagrelease", "recipes"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, tree], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    package, inside = ROOT / "flagrelease", set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"flagrelease/{path.relative_to(package)}"
        for path in (*package.rglob("*"), *(package / "recipes").iterdir())
        if path.is_file() and path.suffix != ".pyc"
    }
    assert wanted <= inside, "tables, templates and texts too: package-data in pyproject.toml"
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # What flagrelease needs comes from here; the wheel's own flagrelease goes before ours.
    (packages / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def ask(*command: str | Path) -> str:
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True).stdout

    assert ask(python, "-c", "import flagrelease; print(flagrelease.__file__)").startswith(str(environment))
    assert "torch-npu-without-cann" in ask(
        python, "-c", "from flagrelease.doctor.known import load_known; print(load_known())"
    )
    assert "mthreads" in ask(environment / "bin" / "flagrelease", "chips")
    assert "int8-hf" in ask(environment / "bin" / "flagrelease", "plan", "tiny", "--checkpoint", SOURCE)

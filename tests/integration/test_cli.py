"""The command line as a user meets it: output, --json, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flagrelease.cli import command_line, main
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "checkpoint"
    write_checkpoint(folder, tiny_config())
    return folder


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    assert main(["convert", str(source), "--out", str(folder), "--target", "bf16:mp8", "--target", "fp8:hf"]) == 0
    return folder


def document(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return json.loads(capsys.readouterr().out)


def test_inspect(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "inspect", source, "--json")
    assert found["problems"] == []
    assert found["dtypes"]["I8"]["tensors"] == 4 * 16 * 3
    assert found["formats"]["fp4"]["tensors"] == 4 * 16 * 3
    assert found["layers"] == {"sliding window": 1, "compressed by 4, indexed": 1, "compressed by 128": 1}
    assert main(["inspect", str(source)]) == 0
    assert "config, index and headers agree" in capsys.readouterr().out


def test_inspect_lists_disagreements_with_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path, tiny_config())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"expert_dtype": "fp8"}))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["metadata"]["total_size"] += 1
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    problems = document(capsys, "inspect", tmp_path, "--json", code=3)["problems"]
    assert len(problems) == 2
    assert any("expert_dtype is fp8, the experts are stored as fp4" in problem for problem in problems)
    assert main(["inspect", str(tmp_path)]) == 3
    assert "2 disagreement(s)" in capsys.readouterr().out


def test_plan(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = document(capsys, "plan", source, "--target", "bf16:mp16", "--chip", "mthreads", "--json")
    folders = {release["folder"]: release for release in plan["releases"]}
    assert folders.keys() == {"bf16-mp16", "fp8-mp1"}
    assert [card["chip"] for card in folders["fp8-mp1"]["cards"] if card["asked"]] == ["mthreads"]
    assert plan["bytes_to_write"] == sum(release["bytes"] for release in plan["releases"])
    for release in folders.values():
        sizes = [sequence["bytes"] for sequence in release["sequences"]]
        assert all(card["fit"] == [card["left_bytes"] // size for size in sizes] for card in release["cards"])
        assert sizes == sorted(set(sizes))
        assert sizes
    assert main(["plan", str(source), "--target", "bf16:mp16"]) == 0
    text = capsys.readouterr().out
    assert "bf16-mp16: the caches of a sequence in flagrelease's engine take" in text
    assert "x 4k" in text
    assert "bf16-mp16 on all chips" in text
    assert "fits" in text
    assert "kunlunxin" in text
    assert main(["plan", str(source), "--chip", "mthreads"]) == 0
    text = capsys.readouterr().out
    assert "fp8-mp1 on its chips" in text
    assert "kunlunxin" not in text, "nobody asked for it"


def test_convert_and_verify(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = document(capsys, "convert", source, "--out", out, "--target", "bf16:mp8", "--json")
    assert again["releases"]["bf16-mp8"]["elements"]["lost"] == 0
    report = document(capsys, "verify", out / "bf16-mp8", "--source", source, "--json")
    assert report["passed"]
    sampled = document(capsys, "verify", out / "fp8-hf", "--source", source, "--sample", "0.2", "--json")
    assert sampled["sample"] == 0.2
    assert main(["verify", str(out / "fp8-hf")]) == 0
    text = capsys.readouterr().out
    assert "intact: agrees with its manifest" in text  # nothing is proved without the source
    assert "proved" not in text


def test_a_flipped_bit_is_exit_code_5(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), "--out", str(tmp_path), "--target", "fp8:mp8"]) == 0
    file = tmp_path / "fp8-mp8" / "model3-mp8.safetensors"
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(bytes(blob))
    assert main(["verify", str(tmp_path / "fp8-mp8"), "--source", str(source)]) == 5
    assert "verification FAILED, 3 of 8 checks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (["convert", "{source}", "--out", "{tmp}"], 2, "usage"),
        (["convert", "{source}", "--out", "{tmp}", "--target", "bf16:mp7"], 2, "usage"),
        (["convert", "{source}", "--out", "{tmp}", "--chip", "abacus"], 2, "usage"),
        (["plan", "{tmp}/none.yaml"], 2, "usage"),
        (["inspect", "{tmp}"], 3, "checkpoint"),
        (["convert", "{source}", "--out", "{tmp}", "--target", "bf16:hf", "--device", "cuda"], 4, "resource"),
        (["convert", "{source}", "--out", "/proc/nowhere", "--target", "bf16:hf"], 4, "resource"),
        (["verify", "{source}"], 5, "verification"),
        (["verify", "{out}/bf16-mp8", "--sample", "0"], 2, "usage"),
    ],
)
def test_exit_codes_and_json_errors(
    words: list[str], code: int, kind: str, source: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if "cuda" in words and torch.cuda.is_available():
        kind, code = "", 0
    filled = [word.format(source=source, tmp=tmp_path, out=out) for word in words]
    assert main(filled) == code
    captured = capsys.readouterr()
    if code == 0:
        return
    assert captured.err.splitlines()[-1].startswith(f"flagrelease: {kind}: ")
    error = document(capsys, *filled, "--json", code=code)["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)


@pytest.mark.parametrize("words", [["frob"], ["convert"], ["convert", "x", "--frob"], ["verify", "x", "--sample", "y"]])
def test_bad_usage_is_exit_code_2(words: list[str]) -> None:
    assert main(words) == 2


def test_progress_is_lines_where_there_is_no_terminal(source: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "flagrelease",
        "convert",
        str(source),
        "--out",
        str(tmp_path),
        "--target",
        "bf16:hf",
    ]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["releases"].keys() == {"bf16-hf"}
    said = result.stderr.splitlines()
    assert said[0].startswith("flagrelease: reading the headers of ")
    assert said[1].startswith("convert: ")
    assert "\x1b" not in result.stderr


def test_help_names_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out
    for command in ("inspect", "plan", "convert", "verify", "publish"):
        assert main([command, "--help"]) == 0
        assert "Example: flagrelease" in capsys.readouterr().out


def commands(group: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """Of a group, and of the groups in it."""
    for name, command in group.commands.items():
        yield from commands(command, *words, name) if hasattr(command, "commands") else [(*words, name)]


@pytest.mark.parametrize("words", list(commands(command_line())), ids=" ".join)
def test_help_is_whole_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """An option whose name is cut cannot be typed."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    assert "…" not in capsys.readouterr().out


def test_help_is_quick_to_load() -> None:
    code = (
        "import sys; from flagrelease.cli import main; main(['--help']); "
        "assert not {'torch', 'numba', 'numpy', 'packaging'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_run_needs_its_packages_and_files_before_it_converts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing torch was found after the conversion and the verification, which take hours for a real model."""
    import importlib.util

    recipe = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
    words = ["run", str(recipe), "--out", str(tmp_path / "out")]
    assert main([*words, "--documents", "none.jsonl"]) == 2
    assert "--documents none.jsonl: no such file" in capsys.readouterr().err
    assert main([*words, "--data", "choices=none.jsonl"]) == 2
    assert "there is no file none.jsonl" in capsys.readouterr().err
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    assert main(words) == 4
    assert "running the model needs torch, which is not installed: pip install '.[engine]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_finished_work_says_so(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(source), "--out", str(tmp_path), "--target", "bf16:hf"]
    assert main(words) == 0
    first = capsys.readouterr()
    assert "complete already" not in first.out
    assert "resuming" not in first.err
    assert "publish needs --recipe FILE" in first.out
    assert main(words) == 0
    again = capsys.readouterr()
    assert "bf16-hf: complete already, nothing was written" in again.out
    assert "verify RELEASE --source CHECKPOINT` compares every byte" in again.err, "a changed bit is not seen here"
    assert "resuming" not in again.err
    assert document(capsys, *words, "--json")["releases"]["bf16-hf"]["complete_before"] is True


def test_ranks_of_one_node_say_an_error_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in range(3):
        (tmp_path / str(rank)).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        assert main(["inspect", "nowhere"]) == 3
    assert main(["inspect", "elsewhere"]) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if "checkpoint: " in line]
    assert len(said) == 2
    assert "nowhere" in said[0]
    assert "elsewhere" in said[1]


def test_a_bug_asks_to_be_reported() -> None:
    code = (
        "import flagrelease.cli as cli; cli.console.show = None; import sys; "
        "sys.argv = ['flagrelease', 'inspect', 'examples/tiny/flagrelease-tiny-v4']; cli.run()"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("flagrelease: this is a bug in flagrelease. Please report")


@pytest.mark.parametrize("words", list(commands(command_line())), ids=" ".join)
def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert main([*words, "--help"]) == 0
    example = " ".join(capsys.readouterr().out.split()).partition("Example")[2]
    assert f"flagrelease {' '.join(words)} " in example

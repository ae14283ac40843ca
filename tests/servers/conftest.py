"""Servers of others in environments of their own, each with a small model."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

import pytest

from flagrelease import cli

HERE = Path(__file__).parent
TINY = HERE.parents[1] / "examples" / "tiny" / "flagrelease-tiny-v4"


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Path:
    """The folder of the environments; a run that asks for these tests alone must name it."""
    folder = pytestconfig.getoption("--servers")
    if folder is None:
        if pytestconfig.option.markexpr == "servers":
            pytest.fail("-m servers: name the folder that tests/servers/make_environment.sh made: --servers FOLDER")
        pytest.skip("needs the servers: --servers FOLDER, made by tests/servers/make_environment.sh")
    return Path(folder)


@pytest.fixture(scope="session")
def release(servers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trained model in BF16, with a chat template for servers that need one."""
    out = tmp_path_factory.mktemp("releases")
    assert cli.main(["convert", str(TINY), "--out", str(out), "--target", "bf16:hf"]) == 0
    return out / "bf16-hf"


@pytest.fixture(scope="session")
def transformers(servers: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`transformers serve` with the small trained model; its address and the model's name there."""
    folder = tmp_path_factory.mktemp("transformers")
    model = shutil.copytree(release, folder / "model")
    shutil.copy(HERE / "chat_template.jinja", model)
    (folder / "home" / "hub").mkdir(parents=True)  # without a cache of the hub it answers /v1/models with 500
    words = ["transformers", "serve", str(model), "--device", "cpu", "--dtype", "bfloat16"]
    with _running(servers / "transformers", words, folder) as address:
        yield address, str(model)


@pytest.fixture(scope="session")
def vllm(servers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """vLLM with DeepSeek-V4's chat encoding and parsers, in front of a small Llama with random weights."""
    folder = tmp_path_factory.mktemp("vllm")
    python = servers / "transformers" / "bin" / "python"
    subprocess.run([python, HERE / "random_llama.py", TINY, folder / "model"], check=True)
    words = ["vllm", "serve", str(folder / "model"), "--served-model-name", "tiny", "--max-model-len", "4096"]
    words += ["--dtype", "bfloat16", "--tokenizer-mode", "deepseek_v4", "--reasoning-parser", "deepseek_v4"]
    words += ["--enable-auto-tool-choice", "--tool-call-parser", "deepseek_v4", "--enforce-eager"]
    with _running(servers / "vllm", words, folder) as address:
        yield address, "tiny"


@contextmanager
def _running(environment: Path, words: list[str], folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "VLLM_CPU_KVCACHE_SPACE": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    program, *rest = words
    command = [environment / "bin" / program, *rest, "--host", "127.0.0.1", "--port", port]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env={**kept, **offline}, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        with suppress(URLError), urllib.request.urlopen(url):
            return
        time.sleep(0.5)
    raise AssertionError(log.read_text(errors="replace")[-3000:])

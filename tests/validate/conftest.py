"""What parts of validation share: a small model with random weights, whose makers live beside the engine's tests."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, small_config
from small_tokenizer import write_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small take longer on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = Checkpoint(small_config()).write_hf(tmp_path_factory.mktemp("small") / "bf16-hf", "bf16")
    write_tokenizer(release)
    return release


@pytest.fixture(scope="session")
def served_small(small_release: Path) -> Iterator[str]:
    """The small release behind `flagrelease serve`, in float32, as `small`: its address with /v1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = ["--numerics", "bf16", "--dtype", "float32", "--context", "2048", "--batch", "4", "--name", "small"]
    command = [sys.executable, "-m", "flagrelease", "serve", str(small_release), "--port", str(port), *how]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}/v1"
        _wait_for(f"{url}/models", server)
        yield url
        server.terminate()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url) as reply:
            assert json.load(reply)["data"][0]["id"] == "small"
            return
        time.sleep(0.1)
    raise AssertionError("the server ended")

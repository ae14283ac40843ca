"""Clients of the server in environments of their own, and the servers that they are run against."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_runs import HERE, TINY, Run


@pytest.fixture(scope="session")
def clients(pytestconfig: pytest.Config) -> Path:
    """The folder of the environments; a run that asks for these tests alone must name it."""
    folder = pytestconfig.getoption("--clients")
    if folder is None:
        if pytestconfig.option.markexpr == "clients":
            pytest.fail("-m clients: name the folder that tests/clients/make_environment.sh made: --clients FOLDER")
        pytest.skip("needs the clients: --clients FOLDER, made by tests/clients/make_environment.sh")
    assert (Path(folder) / "clients" / "bin" / "python").exists(), f"{folder}: no environment in it"
    return Path(folder)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _serve(words: Callable[[int], list[str]], log: Path) -> Iterator[str]:
    """Run a server until the tests end; gives its address."""
    port = _free_port()
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, *words(port)], env=environment, stdout=out, stderr=out)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            if "serving" in log.read_text():  # asking the port until it answers could take it: TCP connects to itself
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def model(clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`flagrelease serve` with the small trained model, as "tiny"."""
    words = ["-m", "flagrelease", "serve", str(TINY), "--name", "tiny", "--context", "2048", "--batch", "8"]
    yield from _serve(
        lambda port: [*words, "--numerics", "bf16", "--port", str(port)], tmp_path_factory.mktemp("serve") / "log"
    )


@pytest.fixture(scope="session")
def scripted(clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that says what it is told to, as "scripted"."""
    yield from _serve(
        lambda port: [str(HERE / "scripted_serve.py"), str(port)], tmp_path_factory.mktemp("scripted") / "log"
    )


@pytest.fixture
def run(clients: Path, tmp_path: Path) -> Run:
    """Run a program of an environment in a folder of its own; gives what it prints. It must succeed."""

    def run_in(environment: str, *words: object, **variables: str) -> str:
        bin_ = clients / environment / "bin"
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HOME": str(tmp_path), "NO_COLOR": "1"}
        done = subprocess.run(
            [str(bin_ / str(words[0])), *map(str, words[1:])],
            env={**kept, **offline, "PATH": f"{bin_}:{kept['PATH']}", **variables},
            cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    return run_in

"""How a server ends, as real processes: signals, a second Ctrl-C, ranks that die; with its own ranks and torchrun's.

Under torchrun a signal cut the streams and left 270 lines of traceback; a rank that died left a server that was no use.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from test_launch import ALONE, FLAGRELEASE, SOURCE, TORCHRUN, alive, descendants, rank_of, wait_until

from flagrelease import cli

pytestmark = pytest.mark.slow  # each starts servers; test_launch.py has a signal and a killed rank for every day
LONG = {"model": "m", "prompt": "Ledger: cloud", "max_tokens": 3000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release for two ranks."""
    out = tmp_path_factory.mktemp("life")
    assert cli.main(["convert", str(SOURCE), "--target", "bf16:mp2", "--out", str(out)]) == 0
    return out / "bf16-mp2"


class Server:
    """A server's process, and what it says."""

    def __init__(self, command: list[str], release: Path, grace: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = ["serve", str(release), "--name", "m", "--port", str(self.port), "--grace", str(grace)]
        words += ["--context", "4000", "--device", "cpu", "--numerics", "bf16"]
        self.process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=ALONE)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.started: list[int] = []

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as said:
            for line in said:
                self.lines.append(line)

    def pid_of(self, rank: str) -> int:
        wait_until(lambda: any(rank_of(pid) == rank for pid in descendants(self.process.pid)))
        return next(pid for pid in descendants(self.process.pid) if rank_of(pid) == rank)

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.process.poll() is not None or any("serving m at" in line for line in self.lines))
        assert self.process.poll() is None, "".join(self.lines)
        self.started = descendants(self.process.pid)

    def end(self) -> tuple[int, str]:
        """The exit code and what was said; none of its processes is left."""
        code = self.process.wait(timeout=100)
        self._reader.join()
        wait_until(lambda: not any(map(alive, self.started)), 20)
        return code, "".join(self.lines)

    def kill(self) -> None:
        for pid in [self.process.pid, *filter(alive, descendants(self.process.pid)), *filter(alive, self.started)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()


@contextmanager
def server(command: list[str], release: Path, grace: int = 600) -> Iterator[Server]:
    running = Server(command, release, grace)
    try:
        yield running
    finally:
        running.kill()


def events(running: Server, body: dict[str, object], begun: Callable[[], None]) -> list[str]:
    """The data of a stream's events to its end; `begun` is called after the first."""
    found: list[str] = []
    url = f"http://127.0.0.1:{running.port}/v1/completions"
    with httpx2.stream("POST", url, json=body, timeout=100) as answer:
        for line in answer.iter_lines():
            if line:
                found.append(line.removeprefix("data: "))
                if len(found) == 1:
                    begun()
    return found


def error_of(event: str) -> str:
    message: str = json.loads(event)["error"]["message"]
    return message


def test_a_signal_ends_a_stream_that_is_told_so(cut: Path) -> None:
    with server(FLAGRELEASE, cut, grace=1) as running:
        running.wait_until_ready()
        seen = events(running, LONG, lambda: running.process.send_signal(signal.SIGTERM))
        assert error_of(seen[-1]) == "the server has been stopped"
        code, said = running.end()
        assert code == 0, said
        assert "Traceback" not in said


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_answer_that_ends_within_the_grace_is_whole(cut: Path, sent: signal.Signals) -> None:
    with server(FLAGRELEASE, cut) as running:
        running.wait_until_ready()
        seen = events(running, LONG | {"max_tokens": 20}, lambda: running.process.send_signal(sent))
        assert seen[-1] == "[DONE]"
        code, said = running.end()
        assert code == 0, said


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_lets_answers_end_and_no_rank_complains(cut: Path, sent: signal.Signals) -> None:
    """torchrun sends the signal to all ranks. It ends with a traceback of its own and exit code 1 whatever they do."""
    with server(TORCHRUN, cut) as running:
        running.wait_until_ready()
        seen = events(running, LONG | {"max_tokens": 20}, lambda: running.process.send_signal(sent))
        assert seen[-1] == "[DONE]"
        code, said = running.end()
        assert code == 1, "if torchrun ends well by now, docs/serving.md and the findings need a new line"
        assert said.count("Traceback") == 1
        assert "SignalException" in said
        assert "flagrelease: resource" not in said


def test_under_torchrun_a_signal_to_the_first_rank_ends_all_with_exit_code_0(cut: Path) -> None:
    with server(TORCHRUN, cut, grace=1) as running:
        running.wait_until_ready()
        seen = events(running, LONG, lambda: os.kill(running.pid_of("0"), signal.SIGTERM))
        assert error_of(seen[-1]) == "the server has been stopped"
        code, said = running.end()
        assert (code, "Traceback" in said) == (0, False), said


@pytest.mark.parametrize("release", ["whole", "cut"])
def test_a_second_ctrl_c_ends_at_once(cut: Path, release: str) -> None:
    with server(FLAGRELEASE, SOURCE if release == "whole" else cut) as running:
        running.wait_until_ready()

        def twice() -> None:
            running.process.send_signal(signal.SIGINT)
            time.sleep(1)
            running.process.send_signal(signal.SIGINT)

        seen = events(running, LONG, twice)
        assert error_of(seen[-1]) == "the server has been stopped"
        code, said = running.end()
        assert (code, "Traceback" in said) == (0, False), said


def test_a_rank_that_dies_in_an_answer_ends_the_server_with_one_message(cut: Path) -> None:
    with server(FLAGRELEASE, cut) as running:
        running.wait_until_ready()
        seen = events(running, LONG, lambda: os.kill(running.pid_of("1"), signal.SIGKILL))
        assert "another rank" in error_of(seen[-1]) or "the engine has stopped" in error_of(seen[-1])
        assert_one_message(running, "rank 1 was killed (SIGKILL)")


def assert_one_message(running: Server, words: str) -> None:
    code, said = running.end()
    assert code == 4, said
    assert "Traceback" not in said
    assert [line for line in running.lines if "resource" in line and words in line], said
    assert said.count("flagrelease: resource") == 1, said


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_dies_while_nobody_asks_ends_the_server_with_one_message(cut: Path, rank: str) -> None:
    with server(FLAGRELEASE, cut) as running:
        running.wait_until_ready()
        os.kill(running.pid_of(rank), signal.SIGKILL)
        assert_one_message(running, f"rank {rank} was killed (SIGKILL)")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_dies_while_loading_ends_the_command_with_one_message(cut: Path, rank: str) -> None:
    with server(FLAGRELEASE, cut) as running:
        os.kill(running.pid_of(rank), signal.SIGKILL)
        assert_one_message(running, f"rank {rank} was killed (SIGKILL)")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_torchrun_a_rank_that_dies_has_one_message_of_ours_beside_torchruns(cut: Path, rank: str) -> None:
    with server(TORCHRUN, cut) as running:
        running.wait_until_ready()
        os.kill(running.pid_of(rank), signal.SIGKILL)
        code, said = running.end()
        assert code == 1, said
        assert said.count("Traceback (most recent call last)") == 1, said
        assert said.count("flagrelease: resource: another rank of the job has ended") <= 1
        assert f"rank      : {rank} (local_rank: {rank})" in said

"""Two real ranks of the small trained model on a CPU: exit codes, who is heard, and that nobody is left behind.

Under torchrun every failure had exit code 1, and a hard kill left the ranks working.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flagrelease import cli
from flagrelease.ranks.status import Status, read_status

SOURCE = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | {
    "OMP_NUM_THREADS": "1"
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flagrelease"]
FLAGRELEASE = [sys.executable, "-m", "flagrelease"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    assert cli.main(["convert", str(SOURCE), "--target", "bf16:mp2", "--out", str(out)]) == 0
    return out / "bf16-mp2"


def asked(release: Path) -> list[str]:
    words = ["generate", str(release), "--prompt", "Ledger: cloud", "--temperature", "0", "--max-tokens", "4"]
    return [*words, "--device", "cpu", "--numerics", "bf16", "--context", "64"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=ALONE, timeout=200, check=False)


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Running; a process that has ended and waits for its parent to notice is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def serving(command: list[str], release: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A server that answers, and all processes that it started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", str(release), "--port", str(port), "--context", "64", "--device", "cpu", "--numerics", "bf16"]
    server = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=ALONE)

    def answers() -> bool:
        assert server.poll() is None
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    started: list[int] = []
    try:
        # another test's server may answer on the port for a moment, before this one has started its ranks
        wait_until(lambda: answers() and len(descendants(server.pid)) >= 2)
        started = descendants(server.pid)
        yield server, started
    finally:
        for pid in [server.pid, *filter(alive, started)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        server.communicate()


def rank_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((v.decode().removeprefix("RANK=") for v in variables if v.startswith(b"RANK=")), "")


def test_a_release_for_two_ranks_starts_them_and_one_is_heard(release: Path, tmp_path: Path) -> None:
    options = ["--log-file", str(tmp_path / "log"), "--status", str(tmp_path / "status.json")]
    done = run([*FLAGRELEASE, *options, *asked(release)])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 rank(s)") == 1
    assert "Z rank 0: " in (tmp_path / "log").read_text(), "the ranks write to the log of who started them"
    assert len(done.stdout.splitlines()) == 1
    alone = run([*FLAGRELEASE, *asked(SOURCE)])
    assert done.stdout == alone.stdout
    status = read_status(tmp_path / "status.json")
    assert status is not None
    assert (status.exit_code, status.rank, status.ranks) == (0, 0, 1)


def spoil(release: Path, folder: Path) -> Path:
    """A release whose file for rank 1 has no header."""
    folder.mkdir()
    for path in release.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "model1-mp2.safetensors").unlink()
    (folder / "model1-mp2.safetensors").write_bytes(b"not a safetensors file")
    return folder


def test_the_rank_that_failed_first_gives_the_exit_code_and_the_words(release: Path, tmp_path: Path) -> None:
    spoilt = spoil(release, tmp_path / "spoilt")
    done = run([*FLAGRELEASE, "--status", str(tmp_path / "status.json"), *asked(spoilt)])
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("flagrelease: checkpoint: ") == 1, "one rank is heard"
    assert "model1-mp2.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads((tmp_path / "status.json").read_bytes())
    assert (status["exit_code"], status["kind"]) == (3, "checkpoint")
    assert "model1-mp2.safetensors" in status["message"]


def test_an_error_of_a_rank_that_does_not_lead_names_it() -> None:
    error = Status(exit_code=3, kind="checkpoint", message="no header", rank=1).as_error()
    assert (str(error), error.exit_code, error.kind) == ("rank 1: no header", 3, "checkpoint")


@pytest.mark.parametrize(
    ("words", "broken", "code"),
    [(["inspect", "nowhere"], "", 3), (["inspect", "nowhere"], "cli.main = lambda: 1 / 0", 1)],
    ids=["refused", "bug"],
)
def test_a_rank_that_failed_keeps_its_exit_code(words: list[str], broken: str, code: int, tmp_path: Path) -> None:
    """Ranks with different releases refused with code 3, but in four of ten runs gloo then aborted one of them."""
    program = f"""if True:
        import atexit, os, sys
        from flagrelease import cli
        atexit.register(os.abort)  # as gloo's threads do while the interpreter shuts down
        {broken}
        sys.argv[1:] = {words!r}
        cli.run()
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=ALONE | {"RANK": "0", "WORLD_SIZE": "2"},
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "flagrelease: " in done.stderr


def test_torchrun_loses_the_exit_code_and_the_status_keeps_it(release: Path, tmp_path: Path) -> None:
    spoilt, path = spoil(release, tmp_path / "spoilt"), tmp_path / "status.json"
    path.write_text("of an earlier run")
    done = run([*TORCHRUN, "--status", str(path), *asked(spoilt)])
    assert done.returncode == 1, "if torchrun tells codes apart by now, findings and docs need a new line"
    status = read_status(path)
    assert status is not None
    assert (status.exit_code, status.kind, status.ranks) == (3, "checkpoint", 2)
    assert [other.name for other in tmp_path.glob("status*")] == ["status.json"]


def test_a_rank_that_is_killed_ends_the_others(release: Path) -> None:
    with serving(FLAGRELEASE, release) as (server, started):
        os.kill(next(pid for pid in started if rank_of(pid) == "1"), signal.SIGKILL)
        _, said = server.communicate(timeout=60)
        assert server.returncode == 4, said
        assert "rank 1 was killed (SIGKILL)" in said
        wait_until(lambda: not any(map(alive, started)))


def test_a_signal_reaches_the_leader_once_and_ends_all(release: Path) -> None:
    with serving(FLAGRELEASE, release) as (server, started):
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=60)
        assert server.returncode == 0, said
        assert not any(map(alive, started))


@pytest.mark.parametrize(
    "command",
    [pytest.param(FLAGRELEASE, id="flagrelease"), pytest.param(TORCHRUN, id="torchrun", marks=pytest.mark.slow)],
)
def test_no_rank_outlives_a_launcher_that_is_killed(release: Path, command: list[str]) -> None:
    """torchrun's ranks went on, as did the server, and the next one found its port taken."""
    with serving(command, release) as (server, started):
        server.kill()
        server.wait()
        wait_until(lambda: not any(map(alive, started)), 20)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--ranks", "3"], 2, "the release is cut for 2 ranks"),
        (["--ranks", "many"], 2, "auto or a number of processes"),
        (["--ranks", "0"], 2, "auto or a number of processes"),
    ],
)
def test_numbers_of_ranks_that_cannot_be(
    release: Path, words: list[str], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*asked(release), *words]) == code
    assert said in capfd.readouterr().err


def test_a_status_that_cannot_be_written_is_refused_at_once(
    release: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--status", str(tmp_path / "none" / "status.json"), *asked(release)]) == 2
    assert "no file can be written there" in capfd.readouterr().err

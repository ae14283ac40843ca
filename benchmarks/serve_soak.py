"""A server under clients that leave, do not read and send nonsense, for minutes; then one of its ranks is killed.

    python benchmarks/serve_soak.py --release FOLDER-mp2 --seconds 180 --cycles 2 --out FILE.json

Every few seconds the memory, the threads and the open files of the leading rank are read from /proc. They may not grow:
between the second fifth of the time and the last by no more than `--growth` MB, by no thread, and by no more files than
the clients have connections. Every answer must be what its request deserves. Then rank 1 is killed: the server must end
with exit code 4 and one message, and the next cycle's server must get its port at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

HOST, NAME = "127.0.0.1", "m"
JSON = "Content-Type: application/json"


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\n{JSON}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Clients:
    """Threads that ask until they are told to stop. `seen` counts what came of it."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self.seen, self._stop = port, Counter[str](), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        kinds = (self._whole, self._stream, self._leaves, self._does_not_read, self._nonsense, self._large, self._half)
        while not self._stop.is_set():
            kind = chance.choice(kinds)
            try:
                self.seen[f"{kind.__name__[1:]}: {kind(chance)}"] += 1
            except OSError as error:
                self.seen[f"{kind.__name__[1:]}: {type(error).__name__}"] += 1

    def _ask(self, request: bytes, until: bytes | None, most: int = 1 << 30) -> bytes:
        with socket.create_connection((HOST, self._port), timeout=120) as connection:
            connection.sendall(request)
            got = b""
            while len(got) < most and (until is None or until not in got) and (piece := connection.recv(65536)):
                got += piece
            return got

    def _chat(self, chance: random.Random, **changes: Any) -> bytes:
        text = "".join(chance.choice("abc \n世{<") for _ in range(chance.randrange(1, 60)))
        body = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 12, **changes}
        return post("/v1/chat/completions", json.dumps(body).encode())

    def _status(self, got: bytes) -> str:
        return got[9:12].decode() if got else "nothing"

    def _whole(self, chance: random.Random) -> str:
        return self._status(self._ask(self._chat(chance, n=chance.randrange(1, 3)), b'"usage"'))

    def _stream(self, chance: random.Random) -> str:
        logprobs = {"logprobs": True, "top_logprobs": 5} if chance.random() < 0.5 else {}
        got = self._ask(self._chat(chance, stream=True, **logprobs), b"\r\n0\r\n\r\n")
        return "200" if b"[DONE]" in got else self._status(got) if not got.startswith(b"HTTP/1.1 200") else "cut"

    def _leaves(self, chance: random.Random) -> str:
        return self._status(self._ask(self._chat(chance, stream=True, max_tokens=500), None, chance.randrange(1, 2000)))

    def _does_not_read(self, chance: random.Random) -> str:
        with socket.create_connection((HOST, self._port), timeout=120) as connection:
            request = self._chat(chance, stream=True, max_tokens=500, logprobs=True, top_logprobs=20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request)
            self._stop.wait(chance.random() * 5)
            return "left"

    def _nonsense(self, chance: random.Random) -> str:
        raw = bytearray(self._chat(chance).split(b"\r\n\r\n", 1)[1])
        for _ in range(chance.randrange(1, 5)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        return self._status(self._ask(post("/v1/chat/completions", bytes(raw)), b"}"))

    def _large(self, chance: random.Random) -> str:
        text = "word " * chance.randrange(2000, 200_000)
        return self._status(self._ask(self._chat(chance, messages=[{"role": "user", "content": text}]), b"}"))

    def _half(self, chance: random.Random) -> str:
        request = self._chat(chance)
        with socket.create_connection((HOST, self._port), timeout=120) as connection:
            connection.sendall(request[: chance.randrange(len(request))])
        return "left"


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found


def variable(pid: int, name: str) -> str:
    items = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((item.decode().partition("=")[2] for item in items if item.startswith(f"{name}=".encode())), "")


def state(pid: int) -> dict[str, float]:
    """Megabytes of memory, threads, open files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"mb": int(lines["VmRSS"].split()[0]) / 1024, "threads": int(lines["Threads"]), "files": files}


def cycle(release: Path, port: int, seconds: float, clients: int) -> dict[str, Any]:
    words = ["serve", str(release), "--name", NAME, "--port", str(port), "--context", "1024", "--device", "cpu"]
    server = subprocess.Popen(
        [sys.executable, "-m", "flagrelease", *words, "--numerics", "bf16", "--batch", "8", "--queue", "32"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    said: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in server.stderr or ():
            said.append(line)
            if "serving m at" in line:
                ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert ready.wait(200), said
    ranks = [pid for pid in descendants(server.pid) if variable(pid, "RANK")]
    members = [pid for pid in ranks if "flagrelease.ranks.member" in Path(f"/proc/{pid}/cmdline").read_text()]
    leader = next(pid for pid in members if variable(pid, "RANK") == "0")
    asking, states = Clients(port, clients), []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(3)
        states.append(state(leader))
    other = next(pid for pid in members if variable(pid, "RANK") == "1")
    seen = dict(asking.seen)
    os.kill(other, signal.SIGKILL)
    code = server.wait(timeout=60)
    asking.stop()
    reader.join()
    early, late = states[len(states) // 5 : 2 * len(states) // 5], states[-len(states) // 5 :]
    peak = {key: (max(s[key] for s in early), max(s[key] for s in late)) for key in ("mb", "threads", "files")}
    return {
        "exit": code,
        "seen": seen,
        "early_and_late": peak,
        "mb": [round(s["mb"]) for s in states],
        "said": said[2:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--cycles", type=int, default=2)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--growth", type=float, default=20)
    parser.add_argument("--port", type=int, default=8125)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cycles = []
    for _ in range(options.cycles):
        cycles.append(cycle(options.release, options.port, options.seconds, options.clients))
        print(json.dumps(cycles[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(cycles, indent=1))
    for each in cycles:
        (early, late), (threads, more), (files, opened) = each["early_and_late"].values()
        wrong = [name for name in each["seen"] if name.split(": ")[1] in ("500", "503", "cut")]
        assert each["exit"] == 4, each["said"]
        assert late - early <= options.growth, each
        assert (more <= threads + 1, opened <= files + 2 * options.clients, wrong) == (True, True, []), each


if __name__ == "__main__":
    main()

"""What the streams of others notice of a client that sends the worst of each kind: p99 of the time between two tokens.

    python benchmarks/serve_interference.py --release FOLDER --seconds 6 --out FILE.json

The server is `serve`'s own (event loop, application, service, processes for large bodies), with the tokenizer.json and
config.json of FOLDER. Its scheduler is a stand-in: every `--step` seconds each sequence gets a token, after a sleep
that holds no lock, as a step on a device does. So the event loop, the engine's thread and the interpreter's lock are
measured and not the model. Eight streams are read by one process, the attack comes from another. Before and after each
attack the same streams are measured without one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

from flagrelease.engine.batch.admission import admit
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.batch.totals import Totals
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.stops import StopWatch

NAME, HOST, VICTIMS, ROWS, QUEUE, CONTEXT = "m", "127.0.0.1", 8, 160, 64, 16384
HOSTILE = 666  # the seed of sequences that write markup of calls which never ends
WORDS = ["Hello", " world", ",", " this", " is", " text", ".", "\n"]
MARKUP = [
    "\n\n<｜DSML｜tool_calls>\n",
    '<｜DSML｜invoke name="f">\n',
    '<｜DSML｜parameter name="a" string="false">',
    "[" * 50,
]


class PacedScheduler:
    """A token for every sequence in every step, whatever it was asked."""

    def __init__(self, step: float) -> None:
        self.runner = SimpleNamespace(
            rows=ROWS, context=CONTEXT, model=SimpleNamespace(device=SimpleNamespace(set_current=lambda: None))
        )
        self.totals, self._pause, self._keys, self._due = Totals(), step, 0, 0.0
        self._running: dict[int, tuple[Sampling, int, StopWatch, list[int]]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def check(self, prompt: list[int], sampling: Sampling) -> int:
        return admit(prompt, sampling, CONTEXT, 129280)

    def submit(self, prompt: list[int], sampling: Sampling) -> int:
        self._keys += 1
        self._running[self._keys] = sampling, self.check(prompt, sampling), StopWatch(sampling.stop), [0]
        return self._keys

    def cancel(self, key: int) -> None:
        self._running.pop(key, None)

    def step(self) -> list[Event]:
        now = time.monotonic()
        self._due = max(self._due + self._pause, now)
        time.sleep(self._due - now)
        return [self._token(key, *self._running[key]) for key in list(self._running)]

    def _token(self, key: int, sampling: Sampling, limit: int, watch: StopWatch, count: list[int]) -> Event:
        n = count[0] = count[0] + 1
        text = watch.push(MARKUP[n % len(MARKUP)] if sampling.seed == HOSTILE else WORDS[n % len(WORDS)])
        scores: tuple[TokenScore, ...] = ()
        if sampling.logprobs is not None:
            top = tuple((70 + k, -0.5 - k) for k in range(sampling.logprobs))
            scores = (TokenScore(70, -0.5, top, 1, n, n + 1),)
        finish: Literal["length"] | None = "length" if n >= limit else None
        if finish:
            del self._running[key]
        return Event(key, text, scores, n, finish, tokens=(70,))


def serve(release: Path, port: int, step: float) -> None:
    """Until SIGTERM."""
    from flagrelease.engine.efforts import read_efforts
    from flagrelease.engine.serve.bind import bind, listen_on
    from flagrelease.engine.serve.large import LargeBodies
    from flagrelease.engine.serve.listen import listen
    from flagrelease.engine.serve.served import Served
    from flagrelease.engine.serve.service import Service
    from flagrelease.engine.serve.serving import Serving, application, settle
    from flagrelease.engine.text import Tokenizer

    sockets, large = bind(HOST, port), LargeBodies()
    service = Service(cast(Scheduler, PacedScheduler(step)), QUEUE)
    serving = Serving(NAME, "chat", HOST, port, sockets, CONTEXT, ROWS, QUEUE, 512, 1)
    tokenizer = Tokenizer(release)
    app = application(serving, Served(service, tokenizer, NAME, "chat", read_efforts(release)), large)
    gc.set_threshold(50_000, 20, 100)  # as the command line sets it
    settle(tokenizer)
    service.start()
    try:
        listen(app, sockets, service, 1, lambda: listen_on(sockets, HOST, port), lambda: print("ready", flush=True))
    finally:
        large.stop()
        service.stop()


# The streams of others.


class Reader(asyncio.Protocol):
    """Notes when something of a stream comes."""

    def __init__(self, body: bytes, gaps: list[float]) -> None:
        self._body, self._gaps, self._last = body, gaps, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(post("/v1/chat/completions", self._body))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._last:
            self._gaps.append(now - self._last)
        self._last = now


async def gaps_of_streams(port: int, seconds: float) -> list[float]:
    """Of eight streams for so long, the first half second left out."""
    loop, gaps = asyncio.get_running_loop(), list[float]()
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 8000}
    made = [
        await loop.create_connection(lambda: Reader(json.dumps(body).encode(), gaps), HOST, port)
        for _ in range(VICTIMS)
    ]
    await asyncio.sleep(0.5)
    gaps.clear()
    await asyncio.sleep(seconds)
    found = list(gaps)
    for transport, _ in made:
        transport.abort()
    await asyncio.sleep(0.2)
    return found


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else math.inf


# The attacks: each is called again and again.


def post(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def exchange(port: int, request: bytes, enough: Callable[[bytes], bool]) -> None:
    """Send a request and read until there is enough of the answer."""
    with socket.create_connection((HOST, port)) as connection:
        connection.settimeout(60)
        connection.sendall(request)
        got = b""
        while not enough(got) and (piece := connection.recv(1 << 16)):
            got = got[-100:] + piece


def whole(path: str, body: Any) -> Callable[[int], None]:
    raw = post(path, body if isinstance(body, bytes) else json.dumps(body).encode())
    ended = lambda got: got.endswith((b"}", b"[DONE]\n\n", b"0\r\n\r\n"))  # noqa: E731
    return lambda port: exchange(port, raw, ended)


def begun(body: Any) -> Callable[[int], None]:
    raw = post("/v1/chat/completions", json.dumps(body).encode())
    return lambda port: exchange(port, raw, bool)


def unread(port: int) -> None:
    """Sixteen streams of many log-probabilities that nobody reads, for two seconds."""
    body = {**CHAT, "stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 8000}
    held = []
    for _ in range(16):
        held.append(socket.create_connection((HOST, port)))
        held[-1].sendall(post("/v1/chat/completions", json.dumps(body).encode()))
    time.sleep(2)
    for connection in held:
        connection.close()


def storm(port: int) -> None:
    """Connections that are closed at once, some in the middle of a request."""
    for n in range(50):
        with socket.create_connection((HOST, port)) as connection:
            if n % 2:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Le")


def tiny(port: int, connections: int = 1) -> None:
    """As many small requests as so many connections take."""
    held = [socket.create_connection((HOST, port)) for _ in range(connections)]
    for _ in range(500):
        for connection in held:
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        for connection in held:
            connection.recv(1 << 16)
    for connection in held:
        connection.close()


CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
MIB = 2**20
ATTACKS: dict[str, Callable[[int], None]] = {
    "prompt of 5 MB": whole("/v1/completions", {"model": NAME, "prompt": "Hello world, words. " * (MIB // 4)}),
    "prompt of 1 MB": whole("/v1/completions", {"model": NAME, "prompt": "Hello world, words. " * (MIB // 20)}),
    "16 MiB of objects": whole("/v1/chat/completions", b'{"metadata":{"a":[' + b",".join([b"{}"] * 5_500_000) + b"]}}"),
    "16 MiB of token ids": whole("/v1/completions", b'{"model":"m","prompt":[' + b",".join([b"1"] * 8_300_000) + b"]}"),
    "60,000 messages": whole(
        "/v1/chat/completions", {"model": NAME, "messages": [{"role": "user", "content": "x"}] * 60_000}
    ),
    "128 choices": whole("/v1/chat/completions", {**CHAT, "n": 128}),
    "20 log-probabilities, 16 choices": whole(
        "/v1/chat/completions", {**CHAT, "n": 16, "logprobs": True, "top_logprobs": 20, "stream": True}
    ),
    "16 stop strings": whole(
        "/v1/chat/completions", {**CHAT, "n": 16, "stop": [f"{n}" * 256 for n in range(10, 26)][:16]}
    ),
    "hostile markup in, 200 kB": whole(
        "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "<｜DSML｜</think>" * 10_000}]}
    ),
    "hostile markup out": whole("/v1/chat/completions", {**CHAT, "seed": HOSTILE, "tools": [TOOL], "max_tokens": 200}),
    "streams left at once": begun({**CHAT, "stream": True}),
    "streams that nobody reads": unread,
    "connections left at once": storm,
    "tiny requests of one connection": tiny,
    "tiny requests of 32 connections": lambda port: tiny(port, 32),
}


def attack(name: str, port: int, ready: Any) -> None:
    ready.set()
    while True:
        ATTACKS[name](port)


def measure(port: int, name: str | None, seconds: float) -> list[float]:
    if name is None:
        return asyncio.run(gaps_of_streams(port, seconds))
    ready = multiprocessing.Event()
    attacker = multiprocessing.Process(target=attack, args=(name, port, ready), daemon=True)
    attacker.start()
    ready.wait()
    try:
        return asyncio.run(gaps_of_streams(port, seconds))
    finally:
        attacker.kill()
        attacker.join()
        time.sleep(4)  # what was begun ends


def milliseconds(gaps: list[float]) -> dict[str, float]:
    return {
        "gaps": len(gaps), "p50_ms": 1000 * quantile(gaps, 0.5), "p99_ms": 1000 * quantile(gaps, 0.99),
        "max_ms": 1000 * quantile(gaps, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--step", type=float, default=0.02)
    parser.add_argument("--only", nargs="*", default=list(ATTACKS))
    parser.add_argument("--port", type=int, default=8124)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        serve(options.release, options.port, options.step)
        return
    words = [sys.executable, __file__, "--server", "--release", str(options.release), "--port", str(options.port)]
    server = subprocess.Popen([*words, "--step", str(options.step)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    time.sleep(8)  # the processes for large bodies start
    rows = []
    try:
        before = measure(options.port, None, options.seconds)
        for name in options.only:
            during = measure(options.port, name, options.seconds)
            after = measure(options.port, None, options.seconds)
            alone = max(quantile(before, 0.99), quantile(after, 0.99))
            row = {"attack": name, "alone_p99_ms": 1000 * alone, **milliseconds(during)}
            row["ratio"] = row["p99_ms"] / row["alone_p99_ms"]
            rows.append(row)
            print(json.dumps(row), flush=True)
            before = after
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    if options.out:
        options.out.write_text(json.dumps({"cpus": os.cpu_count(), "step": options.step, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

"""The server's application on a port, where answers are scripted: it says what the last message tells it to.

`python scripted_serve.py PORT` answers with what the user's last message has between `<say>` and `</say>`, in pieces
of a few characters, and to a tool's result with that result. No model runs, so that a client can be shown any answer,
calls of tools among them; everything else is what `flagrelease serve` does.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from scripted_service import NAME, ScriptedService, ScriptedStream, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.batch.scheduler import Request
from flagrelease.engine.serve.service import Stream
from flagrelease.engine.text import Tokenizer

PIECE = 7  # characters


class Obedient(ScriptedService):
    """Says what it is told to."""

    def open(self, asked: Sequence[Request]) -> list[Stream]:
        super().open(asked)
        return [cast(Stream, ScriptedStream(_pieces(self._told(list(prompt))), sampling)) for prompt, sampling in asked]

    def _told(self, prompt: list[int]) -> str:
        last = self.tokenizer.decode(prompt).rpartition("<｜User｜>")[2]
        result = re.findall(r"<tool_result>(.*?)</tool_result>", last, re.DOTALL)
        said = re.findall(r"<say>(.*?)</say>", last, re.DOTALL)
        return f"The tool says {result[-1]}." if result else said[-1] if said else "Yes."


def _pieces(text: str) -> list[str]:
    return [text[n : n + PIECE] for n in range(0, len(text), PIECE)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = Tokenizer(folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(sys.argv[1])))
        listener.listen()
        print(f"serving {NAME}", flush=True)
        server = uvicorn.Server(uvicorn.Config(scripted_app(tokenizer, Obedient(tokenizer)), log_level="warning"))
        server.run([listener])

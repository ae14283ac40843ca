"""How long do `inspect` and `plan` of a full-size checkpoint on a hub take, and what do they ask the hub for?

    python benchmarks/hub.py                  # V4-Flash, 50 ms before every reply
    python benchmarks/hub.py --model pro --wait 0.2

The hub is the tests' stand-in for Hugging Face in this process: it redirects to a store, as for LFS and Xet, and both
wait before each reply. The headers are real, the data are holes in sparse files. Each run is a whole process, as a user
starts it; the same command on the folder beside it shows what the network adds. Prints Markdown, for
benchmarks/hub_<machine>_<date>.md.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / part) for part in ("publish", "source")]

from hubs import REPO, StoredElsewhere  # noqa: E402
from huggingface_standin import Repository, lfs, regular  # noqa: E402

from flagrelease.model.v4.synthetic import write_checkpoint  # noqa: E402

COMMANDS = {
    "inspect": ["inspect"],
    "plan --target bf16:mp8": ["plan", "--target", "bf16:mp8"],
}


class OnDisk:
    """A file's bytes as the stand-in wants them, of which only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        with self._path.open("rb") as file:
            file.seek(part.start)
            return file.read(part.stop - part.start)


class Slow(StoredElsewhere):  # type: ignore[misc]  # the tests are not typed strictly
    """Hub and store wait before every reply, and count bytes."""

    def __init__(self, cas: Path, wait: float) -> None:
        super().__init__(cas)
        self.wait, self.sent = wait, 0
        for server in (self, self.store):
            server._serve = self._slow(server._serve)

    def _slow(self, serve: Any) -> Any:
        def waiting(handler: Any) -> None:
            time.sleep(self.wait)
            serve(handler)

        return waiting

    def serve(self, match: Any, query: Any, body: bytes, headers: Any) -> Any:
        reply = super().serve(match, query, body, headers)
        self.sent += len(reply.content or b"")
        return reply


def fill(hub: Slow, folder: Path) -> None:
    """Commit the checkpoint. The SHA-256 of tensor files are made up: nobody reads one of them whole."""
    held = hub.repositories[REPO] = Repository(private=False)
    tree = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            digest = hashlib.sha256(name.encode()).hexdigest()
            held.blobs[digest] = OnDisk(path)
            tree[name] = lfs(path.stat().st_size, digest)
        else:
            tree[name] = regular(path.read_bytes())
    held.commit("main", tree)


def run(words: list[str], where: str, endpoint: str) -> tuple[float, float]:
    """Seconds of one command by the clock, and those of the processor."""
    command = [sys.executable, "-m", "flagrelease", words[0], where, *words[1:], "--json"]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint},
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, used


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("flash", "pro"), default="flash")
    parser.add_argument("--wait", type=float, default=0.05, help="seconds before every reply")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="flagrelease-hub-"))
    hub = Slow(work / "cas", options.wait)
    try:
        folder = work / options.model
        config = json.loads((ROOT / "tests" / "golden" / "configs" / f"{options.model}.json").read_text())
        write_checkpoint(folder, config, holes=True)
        fill(hub, folder)
        files = sum(1 for _ in folder.glob("*.safetensors"))
        print(f"- {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}; {datetime.date.today()}")
        print(f"- {options.model}: {files} files; {options.wait * 1000:.0f} ms before every reply")
        print(f"- median of {options.repeat}; load {os.getloadavg()[0]:.1f} at the beginning\n")
        print("| command | s, of the hub | s, of a folder | processor s, hub | folder | requests | MB from the store |")
        print("|---|---|---|---|---|---|---|")
        for title, words in COMMANDS.items():
            there, here, asked, sent = [], [], 0, 0
            for _ in range(options.repeat):
                asked, sent = len(hub.seen) + len(hub.store.seen), hub.sent
                there.append(run(words, f"hf://{REPO}", hub.url))
                asked, sent = len(hub.seen) + len(hub.store.seen) - asked, hub.sent - sent
                here.append(run(words, str(folder), hub.url))
            figures = [
                f"{statistics.median(one[part] for one in runs):.1f}" for part in (0, 1) for runs in (there, here)
            ]
            print(f"| {title} | {' | '.join(figures)} | {asked} | {sent / 1e6:.1f} |", flush=True)
        print(f"\nload {os.getloadavg()[0]:.1f} at the end")
    finally:
        hub.close()
        shutil.rmtree(work)


if __name__ == "__main__":
    main()

"""Two hosts in network namespaces: one is cut off from the network, or does not see the output folder. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import HERE, ROOT, until

from flagrelease.cli import main
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

ADDRESS = "10.123.0.1:6379"


class Hosts:
    """Two network namespaces with a link between them, a Ray node in each."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.names = [f"fr{os.getpid()}{letter}" for letter in "ab"]
        self._python, self._folder = python, folder

    def connect(self) -> bool:
        """Whether this machine allows it."""
        first, second = self.names
        lines = [
            f"netns add {first}", f"netns add {second}",
            f"link add fr-va netns {first} type veth peer name fr-vb netns {second}",
            f"-n {first} addr add 10.123.0.1/24 dev fr-va", f"-n {second} addr add 10.123.0.2/24 dev fr-vb",
            f"-n {first} link set fr-va up", f"-n {second} link set fr-vb up",
            f"-n {first} link set lo up", f"-n {second} link set lo up",
        ]  # fmt: skip
        try:
            return all(subprocess.run(["ip", *line.split()], capture_output=True).returncode == 0 for line in lines)
        except FileNotFoundError:
            return False

    def start(self, host: int, shell: str, **streams: int) -> subprocess.Popen[str]:
        """Run a line of the shell on a host."""
        environment = os.environ | {
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{HERE / 'slow'}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        words = ["ip", "netns", "exec", self.names[host], "bash", "-c", shell]
        return subprocess.Popen(words, env=environment, text=True, **streams)  # type: ignore[call-overload, no-any-return]

    def start_ray(self, prepare: str = "true") -> None:
        options = f"--num-cpus 2 --temp-dir {self._folder}"
        head = f"ray start --head --node-ip-address 10.123.0.1 --port 6379 --include-dashboard false {options}"
        for host, line in ((0, head), (1, f"{prepare} && ray start --address {ADDRESS} --node-ip-address 10.123.0.2 "
                                          f"--num-cpus 2")):  # fmt: skip
            with (self._folder / f"ray{host}.log").open("w") as log:
                assert self.start(host, line, stdout=log.fileno(), stderr=log.fileno()).wait(240) == 0, log.name

    def cut_off(self) -> None:
        subprocess.run(["ip", "-n", self.names[1], "link", "set", "fr-vb", "down"], check=True)

    def remove(self) -> None:
        for name in self.names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for process in found.stdout.split():
                os.kill(int(process), 9)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def hosts(python: Path) -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="fr", dir="/tmp"))  # Ray's sockets need a short path
    made = Hosts(python, folder)
    try:
        if not made.connect():
            pytest.skip("not run: this machine allows no network namespaces")
        yield made
    finally:
        made.remove()
        shutil.rmtree(folder, ignore_errors=True)


def convert(hosts: Hosts, checkpoint: Path, out: Path, parts: int) -> subprocess.Popen[str]:
    line = f"convert {checkpoint} --target bf16:mp8 --out {out} --executor ray --cluster {ADDRESS} --parts {parts}"
    return hosts.start(0, f"python -m flagrelease {line}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", tiny_config())
    return tmp_path / "checkpoint"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_host_is_cut_off_from_the_network(hosts: Hosts, checkpoint: Path, tmp_path: Path) -> None:
    """Ray knows the node to be dead and still says that its task runs; the host itself goes on and holds the lock."""
    out = tmp_path / "out"
    hosts.start_ray()
    running = convert(hosts, checkpoint, out, 4)
    until(lambda: len(list(out.glob("parts/*/progress"))) > 1 or running.poll() is not None)
    hosts.cut_off()
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 0, errors
    assert "its worker was lost on " in errors
    assert main(["convert", str(checkpoint), "--target", "bf16:mp8", "--out", str(tmp_path / "alone")]) == 0
    assert contents(out) == contents(tmp_path / "alone")


def test_a_host_without_the_shared_folder_is_refused(hosts: Hosts, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hosts.start_ray(prepare=f"mount -t tmpfs none {out}")
    running = convert(hosts, checkpoint, out, 2)
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 4, errors
    assert f"{out}: is not the same folder on every node" in errors
    assert not list(out.glob("*/manifest.json"))

"""The files of CI that users copy, taken apart: their steps, and the commands of this program in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github" / "workflows" / "nightly.yml"
GITLAB = ROOT / "examples" / "ci" / "gitlab-nightly.yml"
_GITLAB_KEYS = {"stages", "workflow", "variables", "default"}


@dataclass(frozen=True)
class Step:
    """What one shell runs; `env` is the file's own."""

    job: str
    name: str
    script: str
    env: Mapping[str, str]

    @property
    def installs(self) -> bool:
        return "pip" in self.script and "install" in self.script


def github_steps() -> Iterator[Step]:
    """Every step of every job, once for each chip of a matrix."""
    document: dict[str, Any] = yaml.safe_load(GITHUB.read_text(encoding="utf-8"))
    for job, described in document["jobs"].items():
        for chip in described.get("strategy", {}).get("matrix", {}).get("chip", [""]):
            for step in described["steps"]:
                if "run" not in step:
                    continue
                env = {**document["env"], **described.get("env", {}), **step.get("env", {})}
                env = {name: value.replace("${{ matrix.chip }}", chip) for name, value in env.items()}
                yield Step(job, step.get("name", ""), step["run"].replace("${{ matrix.chip }}", chip), env)


def gitlab_steps() -> Iterator[Step]:
    document: dict[str, Any] = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))
    shared = document["default"]["before_script"]
    for job, described in document.items():
        if job in _GITLAB_KEYS:
            continue
        matrix = described.get("parallel", {}).get("matrix", [{"CHIP": [""]}])
        for chip in matrix[0]["CHIP"]:
            env = {**document["variables"], **described.get("variables", {}), "CHIP": chip}
            for line in [*shared, *described["script"], *described.get("after_script", [])]:
                yield Step(job, line.split()[0], line, env)


def commands(step: Step, values: Mapping[str, str]) -> Iterator[list[str]]:
    """The words of each call of flagrelease, as a shell makes them of these variables."""
    text = re.sub(r"\\\n\s*", " ", step.script)
    for line in text.splitlines():
        line = line.strip()
        if re.match(r"(\.venv/bin/)?flagrelease\s", line):
            line = re.sub(r"\$\{(\w+):\+([^}]*)\}", lambda found: found[2] if values.get(found[1]) else "", line)
            line = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: values.get(found[1]) or found[2], line)
            line = re.sub(r"\$(\w+)", lambda found: values[found[1]], line)
            yield shlex.split(line)[1:]

"""A run as a job: its record in `OUT/nights`, its limit on time, and who is told how it ended."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from flagrelease import __version__
from flagrelease.console import say
from flagrelease.durable.files import refused, write_whole
from flagrelease.errors import FlagReleaseError, LimitError, ResourceError, VerificationError
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.night import NIGHTS, Night, NightChip, NightStep
from flagrelease.records.report import Verdict, parse_report
from flagrelease.run.history import stamp
from flagrelease.run.junit import junit_xml
from flagrelease.run.limits import time_limit
from flagrelease.run.notification import notify
from flagrelease.run.outcome import asked_stages, exit_code, summary, verdict
from flagrelease.run.request import RunRequest
from flagrelease.run.run import run_recipe
from flagrelease.run.steps import ChipRun, RunStep
from flagrelease.run.survey import Survey
from flagrelease.validate.stages.request import default_out
from flagrelease.validate.stages.run import REPORT_NAME


@dataclass(frozen=True, slots=True)
class Telling:
    """Who is told of a run.

    Attributes:
        junit: file for JUnit XML.
        notify: words of a command that gets the record on its standard input.
        time_limit: seconds.
    """

    junit: Path | None = None
    notify: tuple[str, ...] = ()
    time_limit: float | None = None


@dataclass(slots=True)
class Job:
    """One run, while it runs and afterwards.

    Attributes:
        night: what is recorded of it.
        path: of the record; None until there is something to record.
    """

    request: RunRequest
    night: Night
    path: Path | None = None
    runs: list[ChipRun] = field(default_factory=list)

    def seen(self, found: Survey) -> None:
        """Write down what is known so far."""
        self.runs = found.runs
        self._note(True, source=found.identity)

    def end(self, words: str, kind: str, code: int, error: str | None = None) -> None:
        """Write down how it ended. A run that was refused before anything was there leaves no folder."""
        there = self.path is not None or self.request.out.is_dir()
        self._note(there, verdict=kind, summary=words, exit_code=code, error=error, ended=_now())

    def note(self, words: str) -> None:
        """Say something that does not count, and write it down."""
        say(words)
        self._note(self.path is not None, notes=(*self.night.notes, words))

    def _note(self, write: bool, **known: object) -> None:
        self.night = self.night.model_copy(update={"chips": tuple(map(self._chip, self.runs)), **known})
        if write:
            if self.path is None:
                self.path = _reserve(self.request.out / NIGHTS)
            write_whole(self.path, self.night.to_json())

    def _chip(self, run: ChipRun) -> NightChip:
        report = default_out(run.folder, run.chip) / REPORT_NAME
        content = report.read_bytes() if report.is_file() else None
        files = None if run.found is None else run.release.manifest.files
        return NightChip(
            chip=run.chip.id,
            release=run.folder.name,
            stack=run.wanted.spec.stack,
            repository=run.wanted.repo,
            bytes=None if files is None else sum(file.size for file in files),
            manifest_sha256=None if run.found is None else run.release.manifest_sha256,
            verdict=None if content is None else _verdict(content, str(report)),
            report_sha256=None if content is None else hashlib.sha256(content).hexdigest(),
            history=tuple(path.relative_to(self.request.out).as_posix() for path in run.history),
            steps={name: _step(step) for name, step in run.steps.items()},
        )


def run_job(request: RunRequest, telling: Telling) -> Job:
    """Run a recipe; record it, and tell who is to be told.

    Raises:
        FlagReleaseError: as `run_recipe`. It is recorded and told before. The file for JUnit cannot be written: this is
            found before anything else is done.
        KeyboardInterrupt: the user interrupted it.
    """
    job = Job(request, _begin(request))
    if telling.junit is not None:  # the last run's must not pass for this one's, should this one be killed
        write_whole(telling.junit, junit_xml(job.night, ()))
    try:
        _run(job, telling)
    except (FlagReleaseError, OSError) as error:
        refusal = error if isinstance(error, FlagReleaseError) else _refusal(error)
        job.end(f"{refusal.kind}: {refusal}", "failed", refusal.exit_code, f"{refusal.kind}: {refusal}")
        _tell(job, telling)
        raise refusal from error
    job.end(summary(request, job.runs), verdict(job.runs), exit_code(job.runs))
    _tell(job, telling)
    return job


def _run(job: Job, telling: Telling) -> None:
    with time_limit(telling.time_limit) as limit:
        try:
            job.runs = run_recipe(job.request, job.seen)
        except KeyboardInterrupt:
            if not limit.reached:
                job.end("interrupted; the same command resumes", "stopped", 130)
                raise
            if not job.runs:
                raise LimitError("the time limit came before the first stage; give it more time") from None
            _stop(job)


def _stop(job: Job) -> None:
    """Every release that has a stage left was stopped at it."""
    for run in job.runs:
        left = [stage for stage in asked_stages(job.request) if stage not in run.steps]
        if run.goes_on and left:
            said = "the time limit came first; run the same command again to resume"
            run.steps[left[0]] = RunStep("stopped", said, LimitError.exit_code, why="it was not finished yet")


def _tell(job: Job, telling: Telling) -> None:
    if telling.junit is not None:
        try:
            write_whole(telling.junit, junit_xml(job.night, asked_stages(job.request)))
        except ResourceError as error:  # the disk may be full by now; whoever waits for the night is told all the same
            job.note(f"--junit: {error}")
    if telling.notify and (trouble := notify(list(telling.notify), job.night.to_json(), job.night.summary)):
        job.note(trouble)


def _refusal(error: OSError) -> ResourceError:
    """What no stage expects of the system: a vanished mount, a folder without rights."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return ResourceError(f"{where}{error.strerror or error}")


def _begin(request: RunRequest) -> Night:
    return Night(
        began=_now(),
        tool=ToolRecord(version=__version__),
        commit=_source_commit(),
        recipe=os.fsencode(request.path.name).decode(errors="replace"),
        recipe_sha256=hashlib.sha256(request.path.read_bytes()).hexdigest(),
        model=request.recipe.model,
        first=request.begin,
        last=request.until,
        target=request.target,
    )


def _verdict(content: bytes, name: str) -> Verdict | None:
    """Of a report; none of one that is damaged, which the chip's own step says."""
    try:
        return parse_report(content, name).verdict
    except VerificationError:
        return None


def _step(step: RunStep) -> NightStep:
    return NightStep(
        status=step.status,
        kept=not step.why,
        why=step.why,
        detail=step.detail,
        exit_code=step.exit_code,
        seconds=round(step.seconds, 3),
        bytes_per_second=step.bytes_per_second,
    )


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _reserve(folder: Path) -> Path:
    """A name for the record that no other run has, on whichever machine it runs in this moment."""
    name, number = stamp(), 1
    with refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / (f"{name}.json" if number == 1 else f"{name}_{number}.json")
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                number += 1
            else:
                return path


def _source_commit() -> str | None:
    """Of flagrelease: the commit it was installed from, or that of the checkout that runs."""
    stated = importlib.metadata.distribution("flagrelease").read_text("direct_url.json")
    if stated is not None and (commit := json.loads(stated).get("vcs_info", {}).get("commit_id")):
        return str(commit)
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None

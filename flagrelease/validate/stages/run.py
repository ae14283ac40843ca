"""`validate`: the five stages in order, each at most once, and the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack

from flagrelease import __version__
from flagrelease.device import Device
from flagrelease.durable.files import write_whole
from flagrelease.errors import UsageError
from flagrelease.ranks.job import is_leader
from flagrelease.records.manifest import MANIFEST_NAME, Manifest, ToolRecord, read_manifest
from flagrelease.records.report import Report, Stage, verdict_of
from flagrelease.validate.page.page import render_page
from flagrelease.validate.stages.baseline import NO_BASELINE, BaselineFolder
from flagrelease.validate.stages.environment import describe_environment
from flagrelease.validate.stages.file_stages import IntegrityStage, WeightsStage
from flagrelease.validate.stages.model_stages import BehaviourStage, BenchmarksStage, LogitsStage, StageInputs
from flagrelease.validate.stages.port import Port, find_device
from flagrelease.validate.stages.preconditions import require_comparable, require_data, require_packages
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.stage import Outcome, StageRunner, Watch
from flagrelease.validate.stages.state import Binding, State, rules_sha256

REPORT_NAME, PAGE_NAME = "report.json", "report.html"
FILE_STAGES = ("integrity", "weights")


def validate(request: ValidationRequest, watch: Watch) -> Report | None:
    """Validate a release, or go on with it: finished stages are taken as they are.

    Writes `report.json` and `report.html` into `request.out`; killed at any moment and called again it writes the same
    bytes. A stage that fails stops those behind it.

    Returns:
        The report; None on a rank that only holds a part of the model.

    Raises:
        VerificationError: no release, or a baseline that cannot be compared with it.
        UsageError, ResourceError, NetworkError: as the stages say; nothing that was finished is lost.
    """
    manifest = read_manifest(request.release)
    if request.out.resolve().is_relative_to(request.release.resolve()):
        raise UsageError(f"{request.out}: is inside the release, which holds only the files of its manifest")
    baseline = None if request.baseline is None else BaselineFolder.open(request.baseline)
    device = find_device_of(request)
    require_data(request.data, request.rules)
    if not isinstance(device, str):
        require_packages(request.rules)
    manifest_sha256 = hashlib.sha256((request.release / MANIFEST_NAME).read_bytes()).hexdigest()
    with ExitStack() as stack:
        port: Port | str = device if isinstance(device, str) else _open_port(request, manifest, device)
        if isinstance(port, str) and not is_leader():
            return None  # nothing to hold a part of
        binding = Binding(
            manifest_sha256=manifest_sha256,
            chip=request.chip.id,
            rules_sha256=rules_sha256(request.rules),
            environment=describe_environment(None if isinstance(device, str) else device),
        )
        state = State.open(request.out, binding) if is_leader() else State(request.out)
        known = manifest.source.contents_blake3 is not None  # schema 1 recorded headers only: no answers match those
        identity = manifest.source.identity if known else "a source whose contents the manifest does not record"
        if is_leader() and baseline is not None and (isinstance(port, Port) or request.endpoint is not None):
            require_comparable(baseline, request.rules, identity)
        given = StageInputs(request, state, baseline, port, identity, manifest_sha256)
        if isinstance(port, Port):
            stack.enter_context(port)
            if not is_leader():
                stage = LogitsStage(given)
                port.follow(lambda model: stage.compute(model, watch))
                return None
        outcomes = _run_stages(_runners(given, manifest), state, request, watch)
        return _write_report(request, manifest, binding, outcomes)


def find_device_of(request: ValidationRequest) -> Device | str:
    """The device that the model stages run on, or why they do not run. Looked for only if needed: it loads torch."""
    if request.baseline is None:
        return NO_BASELINE
    if request.until in FILE_STAGES:
        return f"not asked for (--until {request.until})"
    return find_device(request.chip, request.device, anywhere=request.rules.device == "any")


def _open_port(request: ValidationRequest, manifest: Manifest, device: Device) -> Port:
    return Port(request.release, manifest.target.dtype, device, request.operators, request.rows)


def _runners(given: StageInputs, manifest: Manifest) -> list[StageRunner]:
    files = IntegrityStage(given.request, manifest), WeightsStage(given.request, manifest)
    return [*files, LogitsStage(given), BenchmarksStage(given), BehaviourStage(given)]


def _run_stages(
    runners: Sequence[StageRunner], state: State, request: ValidationRequest, watch: Watch
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    stopped: str | None = None
    for runner in runners:
        reason = stopped or runner.missing()
        if reason is not None:
            stage = Stage(name=runner.name, verdict="not-run", detail=f"Not run: {reason}.")
            outcomes.append(Outcome(stage=stage, inputs={}))
        else:
            outcome = state.finished(runner.name, runner.inputs()) or state.finish(runner.run(watch))
            outcomes.append(outcome)
            if outcome.stage.verdict == "fail":
                stopped = f"the stage {runner.name} failed"
        if request.until == runner.name and stopped is None:
            stopped = f"not asked for (--until {runner.name})"
    return outcomes


def _write_report(
    request: ValidationRequest, manifest: Manifest, binding: Binding, outcomes: Sequence[Outcome]
) -> Report:
    stages = tuple(outcome.stage for outcome in outcomes)
    benchmarks = tuple(benchmark for outcome in outcomes for benchmark in outcome.benchmarks)
    report = Report(
        schema_version=1,
        tool=ToolRecord(version=__version__),
        manifest_sha256=binding.manifest_sha256,
        chip=request.chip.id,
        verdict=verdict_of(request.rules, stages, benchmarks),
        rules=request.rules,
        stages=stages,
        benchmarks=benchmarks,
        environment=binding.environment,
        commands=(request.command,),
        seeds={name: seed for outcome in outcomes for name, seed in outcome.seeds.items()},
    )
    write_whole(request.out / REPORT_NAME, report_bytes(report))
    write_whole(request.out / PAGE_NAME, render_page(report, manifest).encode())
    return report


def report_bytes(report: Report) -> bytes:
    """`report.json`: keys in the order of the contract, one space of indent, one newline at the end."""
    return json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"

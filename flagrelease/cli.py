"""The command line: parse, call, print. `main` is the only place that turns an error into text and an exit code."""

from __future__ import annotations

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from flagrelease import __version__, console
from flagrelease.bench import commands as bench
from flagrelease.engine import commands as engine
from flagrelease.errors import FlagReleaseError, ResourceError, UsageError, VerificationError
from flagrelease.publish import commands as publishing
from flagrelease.run import commands as pipeline
from flagrelease.validate import commands as validation

EXIT_CODES = """\
Exit codes: 0 done; 1 a bug in flagrelease; 2 bad usage or recipe; 3 bad checkpoint; 4 lack of resources (space, device,
a folder that belongs to something else); 5 failed verification; 6 network; 7 a validation without a verdict;
130 interrupted (run again to go on).
"""

INTERRUPTED = 130

app = typer.Typer(
    name="flagrelease",
    help="DeepSeek-V4 for every chip: convert, prove and publish one release per platform.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


class OGroupsChoice(str, Enum):
    """How wo_a and wo_b are cut where mp > o_groups."""

    SHARED = "shared"
    SPLIT = "split"


class DeviceChoice(str, Enum):
    """Where decoding runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


SourceArgument = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="A recipe (YAML) or a checkpoint folder.", show_default=False)
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="The checkpoint a recipe is applied to, if the recipe names no folder."),
]
TargetOption = Annotated[
    list[str],
    typer.Option(
        "--target", metavar="DTYPE:LAYOUT", help="bf16, fp8 or native; hf or mpN. May be given several times."
    ),
]
ChipOption = Annotated[
    list[str], typer.Option("--chip", metavar="NAME", help="A chip of the table or of the recipe. Several times too.")
]
OGroupsOption = Annotated[
    OGroupsChoice | None,
    typer.Option("--o-groups", help="Ranks of one o-group hold the same piece (shared) or nothing twice (split)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Threads that decode. Default: the processors. Bytes never differ."),
]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"flagrelease {__version__}")
        raise typer.Exit


@app.command(epilog="Example: flagrelease inspect DeepSeek-V4-Flash/")
def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint holds, from headers alone, and where config, index and headers disagree (exit code 3)."""
    from flagrelease import reports
    from flagrelease.convert.inspect import inspect_checkpoint

    inspection = inspect_checkpoint(checkpoint)
    _show(as_json, inspection.model_dump(mode="json"), lambda: reports.show_inspection(inspection))
    if inspection.problems:
        raise typer.Exit(3)


@app.command(epilog="Example: flagrelease plan recipes/deepseek-v4-flash.yaml --checkpoint DeepSeek-V4-Flash/")
def plan(
    source: SourceArgument,
    checkpoint: CheckpointOption = None,
    target: TargetOption = [],  # noqa: B006 - typer reads it, nobody writes it
    chip: ChipOption = [],  # noqa: B006
    o_groups: OGroupsOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every file that convert would write, to the byte; memory, disk, cards and hub limits. Reads headers only."""
    from flagrelease import reports
    from flagrelease.convert.memory import default_workers
    from flagrelease.convert.plan import make_plan
    from flagrelease.convert.request import make_request
    from flagrelease.convert.summary import summarise

    request = make_request(source, checkpoint, target, chip, _plain(o_groups))
    made = make_plan(request.source, request.targets, request.options, request.provenance)
    summary = summarise(made, request, workers or default_workers())
    _show(as_json, summary.model_dump(mode="json"), lambda: reports.show_plan(summary))
    summary.require_hubs()


@app.command(
    epilog="Example: flagrelease convert DeepSeek-V4-Flash/ --target bf16:mp16 --target fp8:mp8 --out releases/"
)
def convert(
    source: SourceArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Each release is written to DIR/DTYPE-LAYOUT/.")],
    checkpoint: CheckpointOption = None,
    target: TargetOption = [],  # noqa: B006
    chip: ChipOption = [],  # noqa: B006
    o_groups: OGroupsOption = None,
    workers: WorkersOption = None,
    device: Annotated[DeviceChoice, typer.Option("--device", help="auto uses the CPU.")] = DeviceChoice.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Dequantise, repack and cut a checkpoint into releases, in one pass. Interrupted, the same command goes on."""
    from flagrelease import reports
    from flagrelease.convert.memory import default_workers
    from flagrelease.convert.plan import make_plan
    from flagrelease.convert.request import make_request
    from flagrelease.convert.run import choose_lookup
    from flagrelease.convert.run import convert as run_conversion
    from flagrelease.convert.summary import summarise

    request = make_request(source, checkpoint, target, chip, _plain(o_groups))
    made = make_plan(request.source, request.targets, request.options, request.provenance)
    threads = workers or default_workers()
    summarise(made, request, threads).require_hubs()
    lookup = choose_lookup(device.value)
    with console.progress("convert", made.bytes_to_write) as report:
        manifests = run_conversion(made, out, workers=threads, lookup=lookup, progress=report.to)
    document = {
        "out": str(out),
        "releases": {
            folder: {
                "plan": manifest.plan,
                "target": manifest.target.model_dump(mode="json"),
                "files": len(manifest.files),
                "bytes": sum(file.size for file in manifest.files),
                "elements": manifest.elements.model_dump(mode="json"),
            }
            for folder, manifest in manifests.items()
        },
    }
    _show(as_json, document, lambda: reports.show_releases(out, manifests))


_VERIFY_EXAMPLES = """\
Example: flagrelease verify releases/bf16-mp16 --source DeepSeek-V4-Flash/ --sample 0.1

Example: flagrelease verify hf://FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS@v0.1.0-0123456789ab --key public.pem
"""


@app.command(epilog=_VERIFY_EXAMPLES)
def verify(
    release: Annotated[
        str,
        typer.Argument(
            metavar="RELEASE", help="A folder, hf://OWNER/NAME@TAG or modelscope://OWNER/NAME@TAG.", show_default=False
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="CHECKPOINT", help="Recompute from the checkpoint it was made of."),
    ] = None,
    sample: Annotated[
        float,
        typer.Option("--sample", metavar="FRACTION", help="Share of the tensors whose data are checked: 0 < F <= 1."),
    ] = 1.0,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The public key (PEM) that must have signed it.")
    ] = None,
    sample_bytes: Annotated[
        int,
        typer.Option("--sample-bytes", metavar="N", min=0, help="On a hub: read that many bytes of tensors as well."),
    ] = 0,
    private: Annotated[bool, typer.Option("--private", help="On a hub: it must be private. Default: public.")] = False,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove a release: files and tensors against its manifest, and against its source with a second decoder.

    On a hub nothing but its records is downloaded: the rest is compared by the digests that the hub lists.
    """
    from flagrelease import reports
    from flagrelease.convert.memory import default_workers
    from flagrelease.publish.online import parse_address
    from flagrelease.records.manifest import read_manifest
    from flagrelease.verify.verify import bytes_to_read, verify_release

    if (address := parse_address(release)) is not None:
        if source is not None or sample != 1:
            raise UsageError("--source and --sample need a folder; on a hub --sample-bytes reads a sample")
        publishing.verify_published(address, key, sample_bytes, private, as_json)
        return
    if sample_bytes or private:
        raise UsageError("--sample-bytes and --private are for a release on a hub")
    folder = Path(release)
    total = bytes_to_read(read_manifest(folder), sample)
    with console.progress("verify", total) as report:
        result = verify_release(folder, source, sample, progress=report.add, workers=workers or default_workers())
    unsigned = [] if key is None else publishing.signature_problems(folder, key)
    document = result.model_dump(mode="json") | ({} if key is None else {"signature_problems": unsigned})
    _show(as_json, document, lambda: reports.show_verification(folder, result))
    for problem in unsigned:
        print(f"flagrelease: signature: {problem}", file=sys.stderr)
    if unsigned or not result.passed:
        raise typer.Exit(VerificationError.exit_code)


engine.register(app)
publishing.register(app)
pipeline.register(app)
bench.register(app)
validation.register(app)


def _plain(choice: OGroupsChoice | None) -> Any:
    return None if choice is None else choice.value


def _show(as_json: bool, document: dict[str, Any], render: Any) -> None:
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        render()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        app(words)
    except FlagReleaseError as error:
        return _report(error, as_json="--json" in words)
    except OSError as error:  # what no command expects: permissions, a vanished disk
        return _report(ResourceError(f"{error.filename}: {error.strerror}"), as_json="--json" in words)
    except SystemExit as end:  # typer ends so, after bad usage too
        if end.code == INTERRUPTED:
            print("flagrelease: interrupted; the same command goes on from here", file=sys.stderr)
        return end.code if isinstance(end.code, int) else 0
    raise AssertionError("typer returned")


def _report(error: FlagReleaseError, as_json: bool) -> int:
    if as_json:
        document = {"error": {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    print(f"flagrelease: {error.kind}: {error}", file=sys.stderr)
    return error.exit_code


def run() -> None:
    """The console script."""
    # torch's threads wait for each other in a spin, which takes 20 times as long where other programs have the cores.
    # OpenMP reads this when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())

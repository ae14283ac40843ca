"""The command line of verification: verify."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Annotated, Protocol

import typer

from flagrelease import console
from flagrelease.errors import UsageError, VerificationError
from flagrelease.source.hub.opening import place_of

_EXAMPLES = """\
Example: flagrelease verify releases/bf16-mp16 --source DeepSeek-V4-Flash/ --sample 0.1

Example: flagrelease verify hf://FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS@v0.1.0-0123456789ab --key public.pem
"""


class Published(Protocol):
    """What `verify` needs from publishing. verify may not import publishing, so `cli.py` passes it in."""

    def verify_published(self, release: str, key: Path | None, sample_bytes: int, private: bool, as_json: bool) -> None:
        """Check a release where it is published, print what was found, and exit with its code."""
        ...

    def signature_problems(self, folder: Path, key: Path) -> list[str]:
        """Compare a folder with what the key signed; return the differences as sentences."""
        ...


def register(app: typer.Typer, published: Published) -> None:
    """Add `verify` to `app`."""

    @app.command(epilog=_EXAMPLES)
    def verify(
        release: Annotated[
            str,
            typer.Argument(
                metavar="RELEASE",
                help="A folder, hf://OWNER/NAME@TAG or modelscope://OWNER/NAME@TAG.",
                show_default=False,
            ),
        ],
        source: Annotated[
            PurePath | None,
            typer.Option(
                "--source",
                metavar="CHECKPOINT",
                parser=place_of,
                help="Compute every weight again from this checkpoint: a folder, hf://OWNER/NAME@REVISION or "
                "modelscope://OWNER/NAME@TAG.",
            ),
        ] = None,
        sample: Annotated[
            float,
            typer.Option("--sample", metavar="FRACTION", help="Read only this share of the weights: 0 < F <= 1."),
        ] = 1.0,
        stacks: Annotated[
            list[str] | None,
            typer.Option(
                "--stack",
                metavar="ID",
                help="This serving stack must load the release, beside those of its recipe. May be repeated.",
            ),
        ] = None,
        key: Annotated[
            Path | None, typer.Option("--key", metavar="FILE", help="Check the signature with this public key (PEM).")
        ] = None,
        sample_bytes: Annotated[
            int,
            typer.Option("--sample-bytes", metavar="N", min=0, help="On a hub: also read N bytes of tensors."),
        ] = 0,
        private: Annotated[
            bool, typer.Option("--private", help="On a hub: expect a private repository. Default: a public one.")
        ] = False,
        workers: Annotated[
            int | None,
            typer.Option("--workers", min=1, help="Threads that read and decode. Default: one a processor."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
    ) -> None:
        """Check a release against its manifest, and with --source prove every weight with a second decoder.

        For a release on a hub, only its records are downloaded; other files are checked by the hub's digests.
        """
        if "://" in release:
            if source is not None or sample != 1 or stacks:
                raise UsageError("--source, --sample and --stack need a folder; on a hub --sample-bytes reads a sample")
            published.verify_published(release, key, sample_bytes, private, as_json)
            return
        if sample_bytes or private:
            raise UsageError("--sample-bytes and --private are for a release on a hub")
        _verify_folder(Path(release), source, sample, stacks or [], key, workers, as_json, published)


def _verify_folder(
    folder: Path,
    source: PurePath | None,
    sample: float,
    stacks: list[str],
    key: Path | None,
    workers: int | None,
    as_json: bool,
    published: Published,
) -> None:
    from flagrelease.records.release import read_release
    from flagrelease.source.hub.opening import files_at
    from flagrelease.verify.display import show_verification
    from flagrelease.verify.verify import bytes_to_read, verify_read_release

    if key is not None and not key.is_file():
        raise UsageError(f"--key {key}: no such file")
    release, threads = read_release(folder), workers or len(os.sched_getaffinity(0))
    files = None if source is None else files_at(source)
    with console.progress("verify", bytes_to_read(release.manifest, sample)) as report:
        result = verify_read_release(
            release, files, sample, seed=0, progress=report.add, workers=threads, stacks=stacks
        )
    unsigned = [] if key is None else published.signature_problems(folder, key)
    document = result.model_dump(mode="json") | ({} if key is None else {"signature_problems": unsigned})
    console.show(as_json, document, lambda: show_verification(folder, result))
    for problem in unsigned:
        console.say(f"signature: {problem}")
    if unsigned or not result.passed:
        raise typer.Exit(VerificationError.exit_code)

"""Files of one document each: written whole, read strictly."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import safetensors
from safetensors.numpy import load, save

from flagrelease.durable.files import write_whole
from flagrelease.errors import VerificationError
from flagrelease.validate.logits.distribution import Array, Piece
from flagrelease.validate.logits.replay import REPLAYS, Replay


def document_file(folder: Path, number: int) -> Path:
    """Of document `number` in a folder of one kind of record."""
    return folder / f"{number:04}.safetensors"


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write; `path` is absent or whole at any moment.

    Raises:
        ResourceError: it cannot be written.
    """
    write_whole(path, save(arrays))


def read_arrays(path: Path) -> dict[str, Array]:
    """Read.

    Raises:
        VerificationError: the file is absent or not a safetensors file.
    """
    try:
        arrays: dict[str, Array] = load(path.read_bytes())
    except FileNotFoundError:
        raise VerificationError(f"{path}: not found") from None
    except safetensors.SafetensorError as error:
        raise VerificationError(f"{path}: {error}") from error
    return arrays


def write_run(path: Path, run: dict[Replay, Piece]) -> None:
    """Write both replays of a document: an array for each of their fields, `prefill.kl` for example."""
    named = {f"{replay}.{name}": array for replay, piece in run.items() for name, array in asdict(piece).items()}
    write_arrays(path, named)


def read_run(path: Path, kind: type[Piece]) -> dict[Replay, Piece]:
    """Read what `write_run` wrote.

    Raises:
        VerificationError: the file is absent, or does not hold exactly the arrays of `kind`.
    """
    arrays = read_arrays(path)
    names = [f.name for f in fields(kind)]
    expected = {f"{replay}.{name}" for replay in REPLAYS for name in names}
    if set(arrays) != expected:
        odd = sorted(expected ^ set(arrays))[0]
        raise VerificationError(f"{path}: array {odd!r} is " + ("missing" if odd in expected else "not expected"))
    return {replay: kind(**{name: arrays[f"{replay}.{name}"] for name in names}) for replay in REPLAYS}

"""Files of one document each: written whole, read strictly."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import safetensors
from safetensors.numpy import load, save

from flagrelease.durable.files import write_whole
from flagrelease.errors import ResourceError, VerificationError
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


def begin(path: Path, header: bytes) -> None:
    """Begin the folder of `path`, a file that says what is being made there; or go on if it says the same.

    Raises:
        ResourceError: the folder was begun with another header, holds something else, or cannot be written.
    """
    folder = path.parent
    if path.is_file():
        if path.read_bytes() != header:
            raise ResourceError(
                f"{folder}: begun with another model, documents, rules or machine than now (see {path.name}); finish "
                "it as it was begun, or remove the folder"
            )
        return
    if folder.exists() and not folder.is_dir():
        raise ResourceError(f"{folder}: is not a folder")
    if folder.is_dir() and any(entry.name != f".{path.name}.partial" for entry in folder.iterdir()):
        raise ResourceError(f"{folder}: is not empty and was not begun by flagrelease; give another folder")
    write_whole(path, header)

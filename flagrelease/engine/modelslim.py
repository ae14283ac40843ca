"""What is special about a ModelSlim folder, as vllm-ascend reads it.

Its tensor files and their index are named otherwise, `quant_model_description.json` says how each tensor is stored, and
a model with the preview's draft stage stores embedding and head once more under the stage's name. Which release formats
are such folders, and the names, are declared in `formats/releases.py`.
"""

from __future__ import annotations

from pathlib import Path

from flagrelease.errors import CheckpointError
from flagrelease.formats.releases import MODELSLIM_DESCRIPTION, RELEASE_FORMATS, Description
from flagrelease.model.config import FamilyConfig
from flagrelease.shard.header import TensorMeta
from flagrelease.shard.index import INDEX_NAME

_FORMATS = tuple(one for one in RELEASE_FORMATS.values() if one.description is Description.MODELSLIM)


def index_name(folder: Path) -> str:
    """The name of the index of the hf release in `folder`.

    Raises:
        CheckpointError: a ModelSlim folder without its description, or with a second index.
    """
    stem = next((one.file_stem for one in _FORMATS if any(folder.glob(f"{one.file_stem}*.safetensors"))), None)
    if stem is None:
        return INDEX_NAME
    if not (folder / MODELSLIM_DESCRIPTION).is_file():
        raise CheckpointError(
            f"{folder / MODELSLIM_DESCRIPTION}: not found; a folder with {stem}*.safetensors says in it how each is "
            f"stored"
        )
    if (folder / INDEX_NAME).exists():
        raise CheckpointError(
            f"{folder / INDEX_NAME}: a ModelSlim folder has {stem}.safetensors.index.json alone: vLLM reads only what "
            f"this one names"
        )
    return f"{stem}.safetensors.index.json"


def take_copies(folder: Path, config: FamilyConfig, tensors: dict[str, TensorMeta]) -> list[tuple[TensorMeta, str]]:
    """Take the copies for the draft stage out of `tensors`; each with the name of what it copies.

    None where the folder is no ModelSlim folder: there such names are not part of the model.

    Raises:
        CheckpointError: one is missing though the model has the stage.
    """
    if not (folder / MODELSLIM_DESCRIPTION).is_file() or config.is_dspark or not config.n_mtp_layers:
        return []
    copies = []
    for original, name in dict.fromkeys(pair for one in _FORMATS for pair in one.copies):
        meta = tensors.pop(name, None)
        if meta is None:
            raise CheckpointError(
                f"{folder}: tensor {name!r} is in no file; a ModelSlim folder with a draft stage stores {original!r} "
                f"under that name too"
            )
        copies.append((meta, original))
    return copies

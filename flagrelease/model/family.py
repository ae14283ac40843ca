"""`Family`: what conversion and proof ask of a family of models, beside the numbers of its config.

A family is a folder: `v4/`. Whoever handles checkpoints of any family asks through this interface, so that a new family
is a new folder and one entry in `families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Generic, TypeVar

from flagrelease.formats.releases import ReleaseFormatName
from flagrelease.model.config import FamilyConfig
from flagrelease.model.tensors import TensorSpec
from flagrelease.model.v4.efforts import Efforts
from flagrelease.shard.header import TensorMeta

C = TypeVar("C", bound=FamilyConfig)


@dataclass(frozen=True, slots=True)
class SequenceCaches:
    """What the caches of one sequence take on every card in the bundled engine.

    Attributes:
        sizes: tokens -> bytes, for the lengths that plans show.
        longest: bytes -> tokens of the longest sequence whose caches fit them; 0 if none does.
    """

    sizes: dict[int, int]
    longest: Callable[[int], int]


@dataclass(frozen=True)
class Family(Generic[C]):
    """One family.

    Attributes:
        model_type: of its config.json.
        parse: the checked part of a config.json; the second argument names the file in errors.
        inventory: every tensor that a checkpoint of a config holds, by name; scales not listed.
        native_arguments: the model part of DeepSeek's `inference/config.json`.
        without_drafts: config.json or inference/config.json of the model without its draft stages, as a new document;
            the second argument is the number of layers.
        published: the published models of a config's shape, the one that a recipe is shipped for first.
        names: all of these.
        title: what people call the family.
        mp_readers: the engines that read its releases of mp layouts, in words.
        formats: the release formats that exist for it.
        reasons: why a checkpoint does not hold this model, from the tensors that it has by name, as sentences; the last
            argument names its config.json. None where nothing better can be said than which tensors are missing.
        hint: why a tensor of this name may be there, though the model has none of the name; empty if nobody knows.
        native_scale_fmt: whether DeepSeek's ModelArgs have `scale_fmt`.
        repack_tile: (rows, columns) that share a scale where FP4 is repacked as FP8.
        attention: what a layer's compression ratio means, in words.
        caches: of a release of this format.
        efforts: what a checkpoint or release of it makes of the efforts that requests name, from its folder, its config
            and the names that it goes by. Each effort says whose encoding writes the chat (`model/chats.py`).
        runs_drafts: whether the bundled engine runs its draft stages.
    """

    model_type: str
    parse: Callable[[dict[str, Any], PurePath | str], C]
    inventory: Callable[[C], dict[str, TensorSpec]]
    native_arguments: Callable[[C], dict[str, Any]]
    without_drafts: Callable[[dict[str, Any], int], dict[str, Any]]
    published: Callable[[C], tuple[str, ...]]
    names: frozenset[str]
    title: str
    mp_readers: str
    formats: frozenset[str]
    reasons: Callable[[Mapping[str, TensorMeta], C, PurePath], Iterator[str]]
    hint: Callable[[str], str]
    native_scale_fmt: bool
    repack_tile: tuple[int, int]
    attention: Mapping[int, str]
    caches: Callable[[C, ReleaseFormatName], SequenceCaches]
    efforts: Callable[[Path, C, Sequence[str]], Efforts]
    runs_drafts: bool

"""Reads which tensors a release folder stores, by rank, from its headers, and checks file names and the index."""

from __future__ import annotations

import re
from pathlib import Path

from flagrelease.errors import VerificationError
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.records.manifest import TargetRecord
from flagrelease.shard.folder import in_folder
from flagrelease.shard.header import TensorMeta, read_header
from flagrelease.shard.index import INDEX_NAME, INDEX_SUFFIX, survey
from flagrelease.verify.result import CheckLog, Finding

_MP_FILE = re.compile(r"model(0|[1-9]\d*)-mp([1-9]\d*)(?:-part([1-9]\d*))?\.safetensors")

StoredTensors = dict[int, dict[str, TensorMeta]]


def read_stored(folder: Path, target: TargetRecord, log: CheckLog) -> StoredTensors:
    """Tensors by rank and name; an hf release counts as one rank, 0. Disagreements go into `log`.

    Raises:
        CheckpointError: a header or the index breaks its format.
        VerificationError: the manifest's target is not a layout.
    """
    if (target.layout == "hf") != (target.mp is None):
        raise VerificationError(f"manifest.json: target: layout {target.layout} with mp {target.mp}")
    return (
        _read_hf(folder, RELEASE_FORMATS[target.dtype].file_stem, log)
        if target.mp is None
        else _read_mp(folder, target.mp, log)
    )


def _read_hf(folder: Path, stem: str, log: CheckLog) -> StoredTensors:
    index_name = stem + INDEX_SUFFIX
    index, problems = survey(in_folder(folder), index_name=index_name)
    for problem in problems:
        log.add(Finding(rule=problem))
    if not (folder / index_name).is_file():
        log.add(Finding(file=index_name, rule="not found; an hf release has an index, also for one file"))
    if index_name != INDEX_NAME and (folder / INDEX_NAME).exists():
        rule = f"beside {index_name}: vLLM would take it for the index, and read no file that it does not name"
        log.add(Finding(file=INDEX_NAME, rule=rule))
    count = len(index.headers)
    wanted = {f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)}
    for header in index.headers:
        if header.file.name not in wanted:
            log.add(Finding(file=header.file.name, rule=f"is not one of {stem}-00001-of-{count:05} to -{count:05}"))
    return {0: index.tensors}


def _read_mp(folder: Path, mp: int, log: CheckLog) -> StoredTensors:
    paths = sorted(folder.glob("*.safetensors"))
    if not 1 <= mp <= len(paths):
        raise VerificationError(f"{folder}: {len(paths)} safetensors files cannot be the {mp} ranks of the manifest")
    ranks: StoredTensors = {rank: {} for rank in range(mp)}
    parts: dict[int, list[int]] = {rank: [] for rank in range(mp)}
    for path in paths:
        match = _MP_FILE.fullmatch(path.name)
        if match is None or int(match[2]) != mp or int(match[1]) >= mp:
            log.add(Finding(file=path.name, rule=f"is not the name of a rank's file of an mp{mp} release"))
            continue
        rank = int(match[1])
        parts[rank].append(int(match[3] or 0))
        for name, meta in read_header(path).tensors.items():
            if name in ranks[rank]:
                log.add(Finding(tensor=name, file=path.name, rule=f"is in {ranks[rank][name].file.name} too"))
            ranks[rank][name] = meta
    for rank, numbers in parts.items():
        if not numbers:
            log.add(Finding(rule=f"rank {rank} of mp{mp} has no file"))
        elif sorted(numbers) not in ([0], list(range(1, len(numbers) + 1))):
            log.add(Finding(rule=f"rank {rank} of mp{mp} has parts {sorted(numbers)}; parts count from 1"))
    if (folder / INDEX_NAME).exists():
        log.add(Finding(file=INDEX_NAME, rule="an mp release has no index; this one belongs to another layout"))
    return ranks

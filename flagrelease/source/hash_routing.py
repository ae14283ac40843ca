"""The tables of the hash-routed layers, which name an expert for every token: each must exist.

Whoever prunes experts and forgets the tables leaves a checkpoint that loads everywhere and answers nonsense, or reads
behind the last expert.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flagrelease.model.stored import StoredWeight
from flagrelease.shard.files import CheckpointFiles

_TABLE = ".ffn.gate.tid2eid"


def routing_problems(files: CheckpointFiles, tensors: tuple[StoredWeight, ...], experts: int) -> Iterator[str]:
    """Tables among `tensors` that name an expert outside 0 to `experts` - 1, as sentences. Reads the tables, 6 MB each.

    Raises:
        CheckpointError: a file cannot be read.
    """
    tables = [tensor for tensor in tensors if tensor.spec.name.endswith(_TABLE)]
    with files.tensors([(tensor.weight, tensor.weight.nbytes) for tensor in tables]) as reader:
        for tensor in tables:
            data = np.empty(tensor.weight.nbytes, dtype=np.uint8)
            reader.read(tensor.weight, 0, data)
            table = data.view("<i8").reshape(tensor.spec.shape)
            wrong = np.argwhere((table < 0) | (table >= experts))
            if len(wrong):
                token, place = wrong[0]
                yield (
                    f"{tensor.weight.file}: tensor {tensor.spec.name!r}: expert {table[token, place]} for token "
                    f"{token}; the model has experts 0 to {experts - 1} ({len(wrong)} such entries)"
                )

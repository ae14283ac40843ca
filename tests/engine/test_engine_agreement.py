"""Ranks that were started differently refuse together, before the first step; nothing but bytes is exchanged.

Before, two ranks with other weights, another config.json, numerics, context or batch gave nonsense and exit code 0, or
waited for each other for ever.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

from flagrelease import engine
from flagrelease.engine.agreement import first_difference, release_identity
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.control import gather_bytes, open_control
from flagrelease.engine.generate.logits_file import write_logits
from flagrelease.errors import CheckpointError, FlagReleaseError, UsageError
from flagrelease.shard.header import TensorMeta, read_header

TINY = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"


def change_config(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"rms_norm_eps": 1e-5}))


def change_a_norm(folder: Path) -> None:
    """As a step of training does: the header stays."""
    header = read_header(folder / "model-00003-of-00008.safetensors")
    meta = next(meta for name, meta in header.tensors.items() if name.endswith("attn_norm.weight"))
    with meta.file.open("r+b") as file:
        file.seek(meta.begin)
        file.write(b"\x11\x3f")


def change_the_last_bytes(folder: Path) -> None:
    path = folder / "model-00004-of-00008.safetensors"
    with path.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01\x02\x03")


def retrain_one_matrix(folder: Path) -> None:
    """A finetune that leaves everything else, norms and both ends of each file included: it was not seen before."""
    _flip(_largest_inside(folder), 0.0, 1.0)


def lose_a_quarter_of_a_matrix(folder: Path) -> None:
    """As a download that was resumed at the wrong place: it was not seen before."""
    _flip(_largest_inside(folder), 0.3, 0.6)


def _largest_inside(folder: Path) -> TensorMeta:
    """The largest matrix of a file that does not lie at either end of the file's data."""
    metas = sorted(read_header(folder / "model-00002-of-00008.safetensors").tensors.values(), key=lambda m: m.begin)
    return max((meta for meta in metas[1:-1] if len(meta.shape) == 2), key=lambda meta: meta.nbytes)


def _flip(meta: TensorMeta, begin: float, end: float) -> None:
    """Change every byte of a part of a tensor."""
    first, last = meta.begin + int(begin * meta.nbytes), meta.begin + int(end * meta.nbytes)
    with meta.file.open("r+b") as file:
        file.seek(first)
        changed = bytes(byte ^ 1 for byte in file.read(last - first))
        file.seek(first)
        file.write(changed)


def lose_a_file(folder: Path) -> None:
    (folder / "model-00008-of-00008.safetensors").unlink()


def cut_a_file(folder: Path) -> None:
    path = folder / "model-00002-of-00008.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def add_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (change_config, "config.json is "),
    (change_a_norm, "model-00003-of-00008.safetensors is "),
    (retrain_one_matrix, "model-00002-of-00008.safetensors is "),
    (lose_a_quarter_of_a_matrix, "model-00002-of-00008.safetensors is "),
    (change_the_last_bytes, "model-00004-of-00008.safetensors is "),
    (lose_a_file, "model-00008-of-00008.safetensors is 'absent'"),
    (cut_a_file, "truncated"),
    (add_a_manifest, "manifest.json is "),
]


def _refusals(work: Callable[[int], object]) -> list[tuple[str, str]]:
    """What each rank is refused with; empty strings where it is not."""
    rank = torch.distributed.get_rank()
    try:
        work(rank)
        own = ("", "")
    except FlagReleaseError as error:
        own = (type(error).__name__, str(error))
    control = open_control()
    assert control is not None
    return [tuple(json.loads(each)) for each in gather_bytes(control, json.dumps(own).encode())]


def _load_each(folder: Path, count: int) -> list[list[tuple[str, str]]]:
    """Rank 0 has the release, rank 1 the n-th folder."""
    return [
        _refusals(lambda rank, n=n: engine.load(folder / str(n) if rank else TINY, "bf16"))  # type: ignore[misc]
        for n in range(count)
    ]


def test_ranks_with_other_files_refuse_together(tmp_path: Path) -> None:
    damages = [(lambda folder: None, ""), *DAMAGES]
    for n, (damage, _) in enumerate(damages):
        damage(shutil.copytree(TINY, tmp_path / str(n)))
    same, *refused = on_ranks(2, _load_each, tmp_path, len(damages))
    assert same == [("", ""), ("", "")]  # the same release in two places
    for n, ((_, said), refusals) in enumerate(zip(DAMAGES, refused, strict=True), 1):
        for kind, message in refusals:
            assert kind == CheckpointError.__name__
            assert said in message
            assert "rank 1" in message or str(tmp_path / str(n)) in message


def test_every_file_of_the_identity_is_seen_alone(tmp_path: Path) -> None:
    """Without processes: what is planted is the only difference."""
    for n, (damage, said) in enumerate(each for each in DAMAGES if each[0] is not cut_a_file):
        damaged = shutil.copytree(TINY, tmp_path / str(n))
        damage(damaged)
        difference = first_difference(release_identity(TINY), release_identity(damaged))
        assert difference is not None
        assert difference.startswith(said)
    assert first_difference(release_identity(TINY), release_identity(TINY)) is None


def test_what_the_sample_cannot_see(tmp_path: Path) -> None:
    """As the docs say: a small change between the pages is left to `flagrelease verify`."""
    damaged = shutil.copytree(TINY, tmp_path / "damaged")
    meta = _largest_inside(damaged)
    assert meta.nbytes > 1 << 16
    _flip(meta, 0.25, 0.25 + 2 / meta.nbytes)  # the page of this quarter lies at 0.375
    assert first_difference(release_identity(TINY), release_identity(damaged)) is None


def _options() -> dict[str, list[tuple[str, str]]]:
    def load(rank: int, **options: object) -> None:
        engine.load(TINY, **{"numerics": "bf16"} | {k: v[rank] for k, v in options.items()})  # type: ignore[index,arg-type]

    found = {
        "--numerics": _refusals(lambda rank: load(rank, numerics=("bf16", "native"))),
        "--dtype": _refusals(lambda rank: load(rank, dtype=("bfloat16", "float32"))),
        "chunk": _refusals(lambda rank: load(rank, chunk=(512, 16))),
        "the draft stage": _refusals(lambda rank: load(rank, mtp=(False, True))),
    }
    model = engine.load(TINY)
    found["--batch"] = _refusals(lambda rank: Runner(model, 2 + rank, 64))
    found["--context"] = _refusals(lambda rank: Runner(model, 2, (64, 10**9)[rank]))
    found["--tokens"] = _refusals(lambda rank: write_logits(model, [[1, 2 + rank]], Path("x"), 3, by_decode=False))
    found["--top"] = _refusals(lambda rank: write_logits(model, [[1, 2]], Path("x"), 3 + rank, by_decode=False))
    return found


def test_ranks_with_other_options_refuse_together() -> None:
    for option, refusals in on_ranks(2, _options).items():
        for kind, message in refusals:
            assert kind == UsageError.__name__, option
            assert "on rank 1 (" in message
            assert f") {option} is '" in message


def _messages() -> list[bytes]:
    control = open_control()
    assert control is not None
    rank = torch.distributed.get_rank()
    return gather_bytes(control, bytes(i % 256 for i in range(rank * 300)) if rank else b"")


def test_bytes_of_any_length_are_gathered() -> None:
    assert on_ranks(3, _messages) == [b"", *(bytes(i % 256 for i in range(rank * 300)) for rank in (1, 2))]


@pytest.mark.slow
def test_the_command_ends_with_an_error_on_a_node_with_other_weights(tmp_path: Path) -> None:
    """Under torchrun, as the report was: each rank its own folder, one norm changed."""
    for rank in range(2):
        shutil.copytree(TINY, tmp_path / str(rank))
    change_a_norm(tmp_path / "1")
    script = tmp_path / "rank.sh"
    script.write_text(
        f'#!/bin/bash\nexec {sys.executable} -m flagrelease generate "{tmp_path}/$RANK" --device cpu --prompt hi '
        "--temperature 0 --max-tokens 4\n"
    )
    script.chmod(0o755)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python",
        str(script),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode != 0
    assert "model-00003-of-00008.safetensors" in result.stderr
    assert not result.stdout

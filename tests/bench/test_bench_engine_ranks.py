"""`bench engine` over ranks: one random model cut in parts, and what the rank with most of it must read."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations, product

import pytest
import torch
from ranks import OMode, on_ranks, own_part

from flagrelease.bench import collectives
from flagrelease.bench.chosen_experts import busiest
from flagrelease.bench.collectives import collective_seconds
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.roof import distinct_experts, layer_bytes, token_operations
from flagrelease.bench.rooms import caches
from flagrelease.bench.synthetic import RandomTensors, random_model
from flagrelease.device import Device, open_device
from flagrelease.engine import collectives as sent
from flagrelease.engine import parallel
from flagrelease.engine.control import open_control
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.parallel import Groups, alone, join_groups
from flagrelease.engine.v4.model import Model
from flagrelease.errors import ResourceError
from flagrelease.model.tensors import Split, Storage, TensorSpec
from flagrelease.model.v4.inventory import inventory

CONFIG = dimensions("tiny")
CPU = torch.device("cpu")


def groups(ranks: int, rank: int, o_mode: OMode | None = None) -> Groups:
    """Without the processes: nothing is computed."""
    return Groups(ranks, rank, max(1, ranks // CONFIG.o_groups), o_mode)


@pytest.mark.parametrize(("ranks", "o_mode"), [(2, None), (4, "shared"), (4, "split")])
def test_ranks_hold_parts_of_one_model(ranks: int, o_mode: OMode | None) -> None:
    whole = RandomTensors(CONFIG, CPU, alone())
    parts = [RandomTensors(CONFIG, CPU, groups(ranks, rank, o_mode)) for rank in range(ranks)]
    raw = {"o_groups": CONFIG.o_groups, "n_routed_experts": CONFIG.n_routed_experts}
    compared = 0
    for name, spec in inventory(CONFIG).items():
        if not name.startswith(("layers.1.", "embed", "head")):
            continue
        x, scale = whole.read(name), whole.read_scale(name)
        for rank, part in enumerate(parts):
            expected = own_part(name, _bytes(x), raw, ranks, rank, o_mode or "split")
            if expected is None:  # another rank's expert
                continue
            got = part.read(name)
            assert torch.equal(_bytes(got), expected), name
            assert got.untyped_storage().nbytes() == expected.numel() * expected.element_size(), name
            own_scale = part.read_scale(name)
            assert (scale is None) == (own_scale is None), name
            if own_scale is not None:
                assert own_scale.numel() == math.prod(
                    -(-n // b) for n, b in zip(_logical(got), _block(spec.storage), strict=True)
                )
            compared += 1
    assert compared > 30 * ranks


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.uint8) if x.element_size() == 1 else x


def _logical(x: torch.Tensor) -> tuple[int, ...]:
    return (*x.shape[:-1], 2 * x.shape[-1]) if x.dtype == torch.int8 else tuple(x.shape)


def _block(storage: Storage) -> tuple[int, int]:
    return (1, 32) if storage is Storage.EXPERT else (128, 128)


def test_tensors_of_other_names_differ() -> None:
    whole = RandomTensors(CONFIG, CPU, alone())
    first, second, again = (whole.read(f"layers.{n}.attn.wkv.weight").view(torch.uint8) for n in (0, 1, 0))
    assert torch.equal(first, again)
    assert (first == second).float().mean() < 0.1


@pytest.mark.parametrize(("experts", "ranks", "k"), [(4, 2, 2), (6, 2, 2), (6, 3, 3), (4, 1, 2)])
def test_busiest_by_counting_all_cases(experts: int, ranks: int, k: int) -> None:
    choices = list(combinations(range(experts), k))
    for tokens in (1, 2):
        counted = [
            max(Counter(expert * ranks // experts for expert in set().union(*choice)).values())
            for choice in product(choices, repeat=tokens)
        ]
        assert busiest(experts, ranks, k, tokens) == pytest.approx(sum(counted) / len(counted))


def test_published_dimensions_by_drawing() -> None:
    """384 experts over 16 ranks: the numbers of ways are large there."""
    drawn = torch.rand(2000, 64, 384, generator=torch.Generator().manual_seed(0)).topk(6).indices
    taken = torch.zeros(2000, 384).scatter_(1, drawn.flatten(1), 1)
    most = taken.view(2000, 16, 24).sum(-1).max(-1).values
    assert busiest(384, 16, 6, 64) == pytest.approx(float(most.mean()), abs=4 * float(most.std()) / 2000**0.5)


def test_bytes_and_operations_of_a_rank() -> None:
    one = random_model(CONFIG, "native", "torch", open_device("cpu"), 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Groups, "gather_rows", lambda self, x: torch.cat([x.view(torch.uint8)] * 2).view(x.dtype))
        half = random_model(CONFIG, "native", "torch", open_device("cpu"), 32, groups=groups(2, 1))
    cut = 0
    for spec in inventory(CONFIG).values():
        if not _is_cut(spec) or spec.name.startswith(("mtp", "embed")):
            continue
        count = math.prod(spec.shape)
        if spec.storage is Storage.LINEAR:
            cut += count + math.prod(-(-n // 128) for n in spec.shape)
        else:
            cut += count * {Storage.BF16: 2, Storage.F32: 4}[spec.storage]
    assert layer_bytes(half) == (layer_bytes(one)[0] - cut // 2, layer_bytes(one)[1])
    assert distinct_experts(half, 1) == pytest.approx(busiest(8, 2, 2, 1))
    products = 0.0
    for spec in inventory(CONFIG).values():
        matrix = _is_cut(spec) and len(spec.shape) == 2
        products += math.prod(spec.shape) if matrix and not spec.name.startswith(("mtp", "embed", "head")) else 0
    experts = CONFIG.num_hidden_layers * 3 * 2 * CONFIG.moe_intermediate_size * CONFIG.hidden_size
    # at a mean depth of 32: layers of ratio 0, 4, 128, 4, a window of 32 keys
    attention = 2 * (32 + (32 + 8) + 32 + (32 + 8)) * CONFIG.num_attention_heads * CONFIG.head_dim
    saved = (products + experts + attention) / 2
    assert token_operations(one, 64) - token_operations(half, 64) == pytest.approx(2 * saved)


def _is_cut(spec: TensorSpec) -> bool:
    """Whether a rank holds and multiplies a part of every such tensor. Ranks give each other the indexer's heads."""
    return spec.split not in (Split.NONE, Split.EXPERT) and ".indexer." not in spec.name


def noted(ranks: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """What the collectives of a step of 3 rows at position 70 are given; the ranks are not there."""
    given: list[tuple[tuple[int, ...], torch.dtype]] = []
    model = random_model(CONFIG, "native", "torch", open_device("cpu"), 1, groups=groups(ranks, 0))

    def work(model: Model) -> None:
        decoder = Decoder(model, model.new_cache(3, 80))
        decoder.positions.fill_(70)
        decoder.step(3, 70)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "seconds", lambda device, replay, inner: replay())
        for name in ("all_sum", "sum_output", "gather_vocab"):
            patch.setattr(Groups, name, lambda self, x: given.append((tuple(x.shape), x.dtype)) or x)
        patch.setattr(Groups, "gather_vocab", lambda self, x: given.append((tuple(x.shape), x.dtype)) or x.repeat(1, 2))
        collective_seconds(model, work)
    return given


def test_the_collectives_of_a_step_are_replayed() -> None:
    given = noted(2)
    layer = [((1, 3, 256), torch.float32)] * 2  # after the output projection and after the experts
    step = [((3, 256), torch.bfloat16), *layer * CONFIG.num_hidden_layers, ((3, 256), torch.float32)]
    assert given == step * 2  # by the step, and alone


def spread_prompt() -> list[str]:
    """The collectives of a prompt of 64 tokens, which the ranks share out."""
    groups = join_groups(CONFIG, "split", open_control())
    model = random_model(CONFIG, "native", "torch", open_device("cpu"), 64, groups=groups)
    called: list[str] = []

    def watched(name: str) -> Callable[..., torch.Tensor]:
        collective: Callable[..., torch.Tensor] = getattr(sent, name)
        return lambda *args, **kwargs: called.append(name) or collective(*args, **kwargs)  # type: ignore[func-returns-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "SPREAD", 64)
        patch.setattr(collectives, "seconds", lambda device, replay, inner: called.append("alone") or replay() or 0.0)
        for name in ("all_gather_single", "reduce_scatter"):
            patch.setattr(sent, name, watched(name))
        tokens = list(range(64))
        collective_seconds(model, lambda model: model.extend(model.new_cache(1, 64), [tokens]))
    return called


def test_the_collectives_of_a_spread_prompt_are_replayed() -> None:
    # They were no part of the time, for they were noted under no name.
    called = on_ranks(2, spread_prompt)
    layers = CONFIG.num_hidden_layers
    indexed = CONFIG.compress_ratios[:layers].count(4)
    alone = called.index("alone")
    assert Counter(called[:alone]) == Counter(called[alone + 1 :])
    assert Counter(called[:alone]) == {"all_gather_single": 2 * layers + indexed + 1, "reduce_scatter": 2 * layers}


def test_torchrun_prints_one_report() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["bench", "engine", "--dimensions", "tiny", "--layers", "2", "--device", "cpu", "--context", "64"]
    words += ["--steps", "1", "--batch", "1,2", "--prompt", "40", "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command = [*torchrun, "-m", "flagrelease", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ranks"] == len(report["copy_bandwidths"]) == len(report["matrix_rates"]) == 2
    assert report["copy_bandwidth"] == min(report["copy_bandwidths"])
    assert [(row["phase"], row["size"]) for row in report["rows"]] == [("decode", 1), ("decode", 2), ("prefill", 40)]
    for row in report["rows"]:
        assert row["collectives"] > 0
        best = report["copy_bandwidth"] if row["phase"] == "decode" else report["matrix_rate"]
        assert row["share"] == pytest.approx(row["needed"] / row["seconds"] / best)


def refused_where_one_is_full() -> str:
    """The second rank's memory is full."""
    groups = join_groups(CONFIG, "split", open_control())
    model = random_model(CONFIG, "native", "torch", open_device("cpu"), 32, groups=groups)
    free = 1000 if groups.rank else 10**12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "memory", lambda device: (free, free))
        with pytest.raises(ResourceError) as refusal:
            caches(model, 1, 64)
    return str(refusal.value)


def test_what_one_rank_has_no_room_for_all_leave_out() -> None:
    # The others went on with it and waited for the one that had gone to the next.
    assert "caches for 1 sequences of 64 tokens" in on_ranks(2, refused_where_one_is_full)

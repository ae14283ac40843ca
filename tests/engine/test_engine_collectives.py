"""What ranks send, in which dtypes, to which ranks: by backends with the vendors' names, which take what those take."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_checkpoint import small_config
from ranks import OMode, on_ranks
from recording_groups import DOCUMENTED, GIVEN, takes

import flagrelease
from flagrelease.chips.table import load_chips
from flagrelease.device import Device
from flagrelease.engine import collectives, parallel
from flagrelease.engine.collectives import SENT, TOLD
from flagrelease.engine.control import gather_bytes
from flagrelease.engine.parallel import Groups, join_groups, start_job
from flagrelease.errors import ResourceError
from flagrelease.model.v4.config import parse_config

PACKAGE = Path(flagrelease.__file__).parent
BACKENDS = ("hccl", "mccl", "flagcx")
RANKS = 4
Given = list[tuple[str, str, tuple[int, ...]]]


def groups_of(mode: OMode, o_groups: int) -> Groups:
    config = parse_config(small_config(num_attention_heads=8, o_groups=o_groups, n_routed_experts=8), "small")
    return join_groups(config, mode)


def schedules() -> dict[str, tuple[list[Any], Given]]:
    """Each way of sharing o-groups on four ranks: what its collectives give on rank 0, and what was given to them."""
    assert dist.get_backend() in BACKENDS
    found = {}
    for name, mode, o_groups in (("whole", "split", 4), ("shared", "shared", 2), ("split", "split", 2)):
        groups = groups_of(mode, o_groups)  # type: ignore[arg-type]
        GIVEN.clear()
        given = []
        for dtype in (torch.bfloat16, torch.float32):
            own = torch.full((2, 3, 8), float(groups.rank + 1), dtype=dtype)
            given += [
                groups.gather_heads(own), groups.sum_o_lora(own.clone()), groups.sum_output(own.clone()),
                groups.all_sum(own.clone()), groups.gather_vocab(own),
            ]  # fmt: skip
        codes = torch.full((2, 4), float(groups.rank + 1)).to(torch.float8_e4m3fn)
        scales = torch.full((2, 4), 2.0**groups.rank).to(torch.float8_e8m0fnu)
        given += [groups.gather_rows(codes), groups.gather_rows(scales)]
        tokens = torch.tensor([groups.rank + 7])
        groups.share(tokens)
        given.append(tokens)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "SPREAD", 8)
            spread = groups.spread(8)
            if spread.is_spread:
                for dtype in (torch.bfloat16, torch.float32):
                    given.append(spread.sum_tokens(torch.full((8, 3), float(groups.rank + 1), dtype=dtype)))
                given.append(spread.together(torch.full((2, 3), float(groups.rank)), (8, 3)))
        assert groups.control is not None
        assert gather_bytes(groups.control, str(groups.rank).encode()) == [b"0", b"1", b"2", b"3"]  # by gloo
        found[name] = [x.float() for x in given], list(GIVEN)
    return found


@pytest.fixture(scope="module", params=BACKENDS)
def by_name(request: pytest.FixtureRequest) -> dict[str, tuple[list[torch.Tensor], Given]]:
    ran: dict[str, tuple[list[torch.Tensor], Given]] = on_ranks(RANKS, schedules, backend=request.param)
    return ran


ALL, PAIR, PROJECTION = (0, 1, 2, 3), (0, 1), (0, 2)
EVERY_DTYPE = ("bfloat16", "float32")
# The sums of 1, 2, 3, 4 over the ranks of each group that rank 0 is in.
OF_ALL, OF_PAIR, OF_PROJECTION = 10.0, 3.0, 4.0


def test_schedules_of_o_groups(by_name: dict[str, tuple[list[torch.Tensor], Given]]) -> None:
    """Which collective of which dtype goes to which ranks, and what comes out, of each way of sharing o-groups."""
    own = torch.ones(2, 3, 8)
    pair = torch.cat([own, own * 2], 1)  # heads are the dimension before the last
    vocab = torch.cat([own * n for n in (1, 2, 3, 4)], -1)
    rows = torch.arange(1, 5).float().repeat_interleave(2)[:, None].expand(8, 4)
    factors = 2.0 ** torch.arange(4).repeat_interleave(2)[:, None].expand(8, 4)
    ends = [rows, factors, torch.tensor([7.0])]
    expected = {
        "whole": [own, own, own * OF_ALL, own * OF_ALL, vocab] * 2 + ends,
        "shared": [pair, own, own * OF_PROJECTION, own * OF_ALL, vocab] * 2 + ends,
        "split": [own, own[..., :4] * OF_PAIR, own * OF_ALL, own * OF_ALL, vocab] * 2 + ends,
    }
    spread = [torch.full((2, 3), OF_ALL)] * 2 + [torch.arange(4).float().repeat_interleave(2)[:, None].expand(8, 3)]
    expected["whole"] += spread
    for name, (got, _) in by_name.items():
        assert len(got) == len(expected[name])
        assert all(torch.equal(a, b) for a, b in zip(got, expected[name], strict=True)), name
    sent = {
        "whole": [("all_reduce", ALL), ("all_reduce", ALL), ("all_gather", ALL)],
        "shared": [("all_gather", PAIR), ("all_reduce", PROJECTION), ("all_reduce", ALL), ("all_gather", ALL)],
        "split": [("all_reduce", PAIR), ("all_reduce", ALL), ("all_reduce", ALL), ("all_gather", ALL)],
    }
    for name, (_, given) in by_name.items():
        calls = [(collective, dtype, ranks) for dtype in EVERY_DTYPE for collective, ranks in sent[name]]
        calls += [("all_gather", "uint8", ALL)] * 2 + [("broadcast", "int64", ALL)]
        if name == "whole":
            calls += [("reduce_scatter", dtype, ALL) for dtype in EVERY_DTYPE] + [("all_gather_single", "uint8", ALL)]
        assert given == calls


def test_the_table_has_what_is_sent_and_nothing_else(by_name: dict[str, tuple[list[torch.Tensor], Given]]) -> None:
    sent = {(name, dtype) for _, given in by_name.values() for name, dtype, _ in given}
    assert sent == {(name, str(dtype).removeprefix("torch.")) for name, dtypes in SENT.items() for dtype in dtypes}


def test_the_page_has_the_table() -> None:
    page = (PACKAGE.parent / "docs/engine-internals.md").read_text("utf-8").split("### What ranks send")[1]
    rows = [line.split(" | ")[:2] for line in page.split("\n\n")[1].splitlines()[2:]]
    said = {name.strip("| `"): dtypes.split(", ") for name, dtypes in rows}
    assert said == {name: [str(dtype).removeprefix("torch.") for dtype in dtypes] for name, dtypes in SENT.items()}


@pytest.mark.parametrize("backend", sorted(DOCUMENTED))
def test_every_backend_documents_what_is_sent(backend: str) -> None:
    for collective, dtypes in SENT.items():
        for dtype in dtypes:
            assert takes(backend, collective, str(dtype).removeprefix("torch.")), (collective, dtype)


def test_what_backends_document_differs_in_fp8() -> None:
    """Why none is sent; and that the check above would see it."""
    fp8 = {
        backend: [name for name in ("float8_e4m3fn", "float8_e8m0fnu") if takes(backend, "all_gather", name)]
        for backend in DOCUMENTED
    }
    assert fp8 == {"nccl": [], "hccl": [], "mccl": ["float8_e4m3fn"], "flagcx": []}
    assert not takes("hccl", "all_reduce", "uint8")  # moved, but not added up


FP8 = [getattr(torch, name) for name in dir(torch) if name.startswith(("float8_", "float4_"))]


@pytest.mark.parametrize("dtype", FP8, ids=str)
def test_no_fp8_tensor_is_given_to_a_collective(dtype: torch.dtype) -> None:
    x = torch.zeros(4, dtype=torch.uint8).view(dtype)
    none: Any = None  # no group is reached
    calls = {
        "all_reduce": lambda: collectives.all_reduce(x, none),
        "reduce_scatter": lambda: collectives.reduce_scatter(x, x, none),
        "all_gather": lambda: collectives.all_gather([x], x, none),
        "all_gather_single": lambda: collectives.all_gather_single(x, x, none),
        "broadcast": lambda: collectives.broadcast(x, none),
    }
    assert set(calls) == set(SENT) >= set(TOLD)
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} of {dtype}"):
            call()


def collectives_of(source: str) -> list[str]:
    """Functions of torch.distributed that a file calls to send tensors."""
    sending = ("all_", "reduce", "broadcast", "gather", "scatter", "send", "recv", "isend", "irecv", "batch_isend")
    owners = ("dist", "distributed", "torch.distributed")
    return [
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners and node.attr.startswith(sending)
    ]


def test_collectives_are_called_in_one_file() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    every = {path: collectives_of(source) for path, source in sources.items() if "distributed" in source}
    assert [path for path, found in every.items() if found] == ["engine/collectives.py"]
    assert Counter(every["engine/collectives.py"]).keys() >= {"all_reduce", "all_gather", "broadcast"}
    assert collectives_of("import torch.distributed as dist\ndist.all_gather(parts, fp8)")


def test_backends_of_the_chip_table_are_known_by_name_alone() -> None:
    """Every one is documented here, and a torch that lacks it is said before a job begins."""
    assert {chip.dist_backend for chip in load_chips().values()} <= set(DOCUMENTED)


def test_a_backend_that_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ResourceError, match=r"'npu': torch\.distributed has no backend 'hccl' here"):
        start_job(Device("npu", 0, "hccl"))


def test_a_dtype_that_a_backend_does_not_document_is_seen() -> None:
    """Planted: an all-reduce of uint8, which HCCL refuses, in a job that has HCCL's name."""
    assert on_ranks(1, _sum_of_bytes, backend="hccl") == "hccl documents no all_reduce of uint8"


def _sum_of_bytes() -> str:
    try:
        dist.all_reduce(torch.zeros(4, dtype=torch.uint8))
    except RuntimeError as error:
        return str(error)
    return "taken"

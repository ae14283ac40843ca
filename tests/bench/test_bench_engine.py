"""`bench engine` and `bench kernels` on a CPU, and the bytes that a step is said to need."""

from __future__ import annotations

import json
import platform
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pytest
import torch

from flagrelease.bench.circumstances import Circumstances
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.engine import EngineReport, EngineRequest, EngineRow
from flagrelease.bench.engine_report import plot_engine
from flagrelease.bench.kernel_report import show_kernels
from flagrelease.bench.kernels import KernelReport, KernelRequest, KernelRow, absent_providers
from flagrelease.bench.operator_cases import bytes_read, operator_cases
from flagrelease.bench.options import comma_numbers
from flagrelease.bench.roof import cache_bytes, distinct_experts, layer_bytes
from flagrelease.bench.synthetic import random_model, weight_bytes
from flagrelease.cli import main
from flagrelease.device import Device, open_device
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.kernels.operators import OPERATORS
from flagrelease.engine.parallel import alone
from flagrelease.engine.v4.model import Model
from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.tensors import Storage
from flagrelease.model.v4.inventory import inventory


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other's processors make small products many times as slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ENGINE = ["bench", "engine", "--dimensions", "tiny", "--device", "cpu", "--context", "64", "--steps", "1"]


def document(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict:  # type: ignore[type-arg]
    assert main([*arguments, "--json"]) == 0
    result: dict = json.loads(capsys.readouterr().out)  # type: ignore[type-arg]
    return result


def tiny(**changes: int) -> Model:
    return random_model(dimensions("tiny", **changes), "native", "torch", open_device("cpu"), 32)


def test_rows_are_consistent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    report = document(capsys, [*ENGINE, "--batch", "1,3", "--prompt", "40", "--plot", str(plot)])
    assert [(row["phase"], row["size"]) for row in report["rows"]] == [("decode", 1), ("decode", 3), ("prefill", 40)]
    for row in report["rows"]:
        assert row["rate"] == pytest.approx(row["size"] / row["seconds"])
        assert row["collectives"] == 0
        best = report["copy_bandwidth"] if row["phase"] == "decode" else report["matrix_rate"]
        assert row["share"] == pytest.approx(row["needed"] / row["seconds"] / best)
    bars = ElementTree.fromstring(plot.read_text()).iter("{http://www.w3.org/2000/svg}rect")
    assert len(list(bars)) == 2 * 3


@pytest.mark.parametrize(("stages", "drafts"), [("mtp", 1), ("dspark", 5)])
def test_what_drafts_cost(stages: str, drafts: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*ENGINE, "--layers", "3", "--batch", "1,2", "--prompt", "", "--drafts", stages]
    report = document(capsys, arguments)
    assert [(row["size"], row["context"], row["drafts"]) for row in report["drafts"]] == [
        (1, 64, drafts),
        (2, 64, drafts),
    ]
    for row in report["drafts"]:
        # a verification gives a token and the drafts that are right, in the time of `ratio` plain steps
        assert (row["break_even"] + 1) * row["step"] == pytest.approx(row["verify"] + row["draft"])
        assert row["ratio"] == pytest.approx(row["break_even"] + 1)


def test_stages_that_read_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match="2 layers: DSpark's stages read 3"):
        dimensions("tiny", 2, dspark=True)


@pytest.mark.parametrize("numerics", ["native", "fp8", "bf16"])
def test_every_numerics_can_be_measured(numerics: str, capsys: pytest.CaptureFixture[str]) -> None:
    # fp8 was refused: the random experts were FP4, whatever the numerics.
    report = document(capsys, [*ENGINE, "--layers", "2", "--batch", "1", "--prompt", "9", "--numerics", numerics])
    assert [row["phase"] for row in report["rows"]] == ["decode", "prefill"]


def test_fp8_numerics_measure_experts_in_fp8() -> None:
    native, fp8 = (
        random_model(dimensions("tiny"), name, "torch", open_device("cpu"), 32) for name in ("native", "fp8")
    )
    codes, halves = fp8.blocks[1].ffn.experts.w1, native.blocks[1].ffn.experts.w1
    assert codes.dtype == torch.float8_e4m3fn
    assert codes.shape == (*halves.shape[:-1], 2 * halves.shape[-1])
    assert fp8.logits([1, 2, 3]).isfinite().all()


@pytest.mark.parametrize("numerics", ["native", "fp8", "bf16"])
def test_weights_take_the_memory_that_is_asked_for_first(numerics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = dimensions("tiny"), open_device("cpu")
    model = random_model(config, numerics, "torch", cpu, 32, mtp=True)
    held: dict[int, int] = {}
    collect(model, held)
    said = weight_bytes(config, model.numerics, alone(), mtp=True)
    assert said == pytest.approx(sum(held.values()), rel=0.01)
    monkeypatch.setattr(Device, "memory", lambda device: (said - 1, said - 1))
    with pytest.raises(ResourceError, match=r"fewer --layers or --experts"):
        random_model(config, numerics, "torch", cpu, 32, mtp=True)


def collect(thing: object, held: dict[int, int]) -> None:
    """Bytes of every tensor's memory that `thing` holds, views once."""
    if isinstance(thing, torch.Tensor):
        held[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    elif isinstance(thing, tuple):
        for each in thing:
            collect(each, held)
    elif is_dataclass(thing):
        for field in fields(thing):
            collect(getattr(thing, field.name), held)


def test_what_is_being_measured_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    # A CPU was silent for minutes.
    assert main([*ENGINE, "--layers", "1", "--batch", "1,2", "--prompt", "9"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bench engine: ")]
    assert "A CPU runs the operators' definitions" in said[0]
    assert ["decoding 1 row" in said[1], "decoding 2 row" in said[2], "prompt of 9" in said[3]] == [True] * 3


def test_documents_say_when_with_what_and_on_what(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    report = document(capsys, [*ENGINE, "--layers", "1", "--batch", "1", "--prompt", ""])
    said = report["circumstances"]
    assert said["date"].endswith("+00:00")
    assert before <= datetime.fromisoformat(said.pop("date")) <= datetime.now(timezone.utc)
    assert said == {
        "flagrelease": version("flagrelease"), "torch": torch.__version__, "triton": version("triton"),
        "device": platform.machine(), "torch_device": "cpu",
    }  # fmt: skip
    assert report["decoding"] == "eager: a CPU has no graphs"
    assert report["request"] == {
        "name": "tiny", "layers": 1, "experts": None, "numerics": "native", "operators": "auto", "batches": [1],
        "prompts": [], "contexts": [64], "chunk": 8192, "steps": 1, "drafts": None,
    }  # fmt: skip


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Circumstances.now(open_device("cpu")).triton is None


def test_results_are_there_when_they_cannot_be_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*ENGINE, "--layers", "1", "--batch", "1", "--prompt", "", "--json"]
    assert main([*words, "--plot", str(tmp_path / "none" / "plot.svg")]) == 4
    out, err = capsys.readouterr()
    assert [row["size"] for row in json.loads(out)["rows"]] == [1]
    assert "plot.svg: not drawn: No such file or directory" in err


def test_names_in_a_drawing_are_text() -> None:
    place = Circumstances("", "", "", None, "<A&B> card", "cuda:0")
    request = EngineRequest("tiny", None, None, "native", "auto", (1,), (), (64,), 32, 1)
    row = EngineRow("decode", 1, 64, 1.0, 0.0, 1.0, 1.0, 2.0)
    report = EngineReport(place, request, "", (1.0,), (1.0,), (), (row,), ())
    texts = [text.text for text in ElementTree.fromstring(plot_engine(report)).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["tiny dimensions, <A&B> card: share of the roof", "decode 1 of 64", "1 tokens/s, 50%"]


def test_what_is_decoded_stands_behind_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is that of reading so many tokens' caches."""
    positions: list[list[int]] = []
    monkeypatch.setattr(Decoder, "step", lambda self, rows, last: positions.append([last, *self.positions.tolist()]))
    assert main([*ENGINE, "--layers", "1", "--batch", "2", "--prompt", ""]) == 0
    assert len(positions) > 1
    assert {tuple(each) for each in positions} == {(64, 64, 64)}


def test_every_batch_is_decoded_at_every_context(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no room is said, not skipped, and does not end the run."""
    words = ["--layers", "2", "--batch", "1,2", "--prompt", "5", "--context", "32,96"]
    monkeypatch.setattr(Device, "memory", lambda device: (10**12, 10**12))
    report = document(capsys, [*ENGINE, *words])
    rows = [(row["phase"], row["size"], row["context"]) for row in report["rows"]]
    assert rows == [("decode", 1, 32), ("decode", 2, 32), ("decode", 1, 96), ("decode", 2, 96), ("prefill", 5, 0)]
    assert report["rows"][2]["needed"] > report["rows"][0]["needed"]
    model = tiny(layers=2)
    room = max(model.cache_bytes(2, 96, 1), model.cache_bytes(1, 160, 1))
    monkeypatch.setattr(Device, "memory", lambda device: (room, 10**12))
    report = document(capsys, [*ENGINE, *words])
    assert [row["size"] for row in report["rows"] if row["context"] == 96] == [1]
    assert [text.split(",")[0] for text in report["left_out"]] == ["decoding 2 row(s) after 96 tokens"]
    # A prompt without room ended the run, and nobody saw what had been measured.
    monkeypatch.setattr(Device, "memory", lambda device: (model.cache_bytes(2, 96, 1), 10**12))
    report = document(capsys, [*ENGINE, *words[:4], "--prompt", "5,4000", "--context", "32"])
    assert [(row["phase"], row["size"]) for row in report["rows"]] == [("decode", 1), ("decode", 2), ("prefill", 5)]
    assert [text.split(": caches")[0] for text in report["left_out"]] == ["reading a prompt of 4000 tokens"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--context", "32,1048576"], "--context 1048576: tiny dimensions allow at most 1048512 tokens"),
        (["--prompt", "9,1048577"], "--prompt 1048577: tiny dimensions allow at most 1048576 tokens"),
    ],
)
def test_lengths_that_the_model_does_not_take_are_refused_first(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The refusal came when the shorter ones had been measured, and took their rows with it.
    monkeypatch.setattr("flagrelease.bench.engine.random_model", None)
    assert main([*ENGINE, "--batch", "1", "--prompt", "", *words]) == UsageError.exit_code
    assert said in capsys.readouterr().err


def test_rooms_are_what_caches_take(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "memory", lambda device: (10**10, 10**12))
    report = document(capsys, [*ENGINE, "--layers", "2", "--batch", "1", "--prompt", ""])
    model = tiny(layers=2)
    for room in report["rooms"]:
        assert room["bytes"] == model.cache_bytes(1, room["context"], 512)
        assert room["fit"] == 10**10 // room["bytes"]
    assert report["rooms"][0]["bytes"] == model.new_cache(1, 4096).nbytes - _longer_ring(model)
    assert main([*ENGINE, "--layers", "2", "--batch", "1", "--prompt", ""]) == 0
    assert "a sequence of 4096 tokens takes" in capsys.readouterr().out


def _longer_ring(model: Model) -> int:
    """`tiny` has rings for a chunk of 32 tokens, not 512, in both layers."""
    return -2 * (512 - 32) * model.config.head_dim * 2


def test_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ENGINE, "--layers", "2", "--batch", "1", "--prompt", ""]) == 0
    out = capsys.readouterr().out
    assert "decode" in out
    assert "prefill" not in out
    assert "decoding eager: a CPU has no graphs" in out


def test_bytes_of_the_weights_are_those_of_the_stored_tensors() -> None:
    config = dimensions("tiny")
    always, expert = 0, 0
    for spec in inventory(config).values():
        count = torch.Size(spec.shape).numel()
        if spec.name.startswith(("mtp", "embed")) or spec.storage is Storage.I64:
            continue
        if spec.storage is Storage.EXPERT:
            expert += (count // 2 + count // 32) if spec.expert == 0 else 0
        elif spec.storage is Storage.LINEAR:
            always += count + -(-spec.shape[0] // 128) * -(-spec.shape[1] // 128)
        else:
            always += count * {Storage.BF16: 2, Storage.F32: 4}[spec.storage]
    assert layer_bytes(tiny()) == (always, expert)


def test_bytes_of_the_caches() -> None:
    # layers of ratio 0, 4, 128, 4; a window of 32 keys of 128 BF16 numbers, 16 chosen entries, index keys of 128
    keys = 32 + (32 + 16) + (32 + 512 // 128) + (32 + 16)
    assert cache_bytes(tiny(), 512) == 2 * (128 * keys + 2 * 128 * (512 // 4))
    # Of a long context layers of ratio 4 have codes: keys of 64 bytes, 64 BF16 numbers and a scale, index keys of 64
    # bytes and 4 scales, in rows of 16 bytes.
    keys = 32 + (32 + 65536 // 128)
    assert cache_bytes(tiny(), 65536) == 2 * 128 * keys + 2 * 208 * (32 + 16) + 2 * 80 * (65536 // 4)


def test_distinct_experts_by_counting_all_cases() -> None:
    model = tiny(experts=3)  # of which a token takes two: three equally likely pairs
    pairs = ({0, 1}, {0, 2}, {1, 2})
    for rows in (1, 2, 3):
        counted = [len(set.union(*choice)) for choice in product(pairs, repeat=rows)]
        assert distinct_experts(model, rows) == pytest.approx(sum(counted) / len(counted))


def test_published_dimensions() -> None:
    flash, pro = dimensions("flash"), dimensions("pro")
    # parameters without scales, MTP included: what the published checkpoints hold
    for config, parameters in ((flash, 290_942_289_362), (pro, 1_598_837_347_742)):
        tensors = (spec for spec in inventory(config).values() if spec.storage is not Storage.I64)
        assert sum(torch.Size(spec.shape).numel() for spec in tensors) == parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("flash", 44, None), "44 layers"), (("flash", None, 5), "5 experts"), (("small", None, None), "dimensions")],
)
def test_dimensions_that_do_not_exist(arguments: tuple[str, int | None, int | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dimensions(*arguments)


def test_lists_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ENGINE, "--batch", "1,x"]) == 2
    assert "--batch" in capsys.readouterr().err
    assert [comma_numbers("--n", text) for text in ("", "7", "1,16,64")] == [(), (7,), (1, 16, 64)]
    for wrong in ("1,", "0", "-1", "1.5", "1;2"):
        with pytest.raises(UsageError, match=r"--n .*: numbers from 1 on"):
            comma_numbers("--n", wrong)


def test_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    report = document(capsys, ["bench", "kernels", "--dimensions", "tiny", "--tokens", "1,3", "--device", "cpu"])
    rows = report["rows"]
    assert report["request"] == {"name": "tiny", "tokens": [1, 3]}
    assert report["circumstances"]["torch"] == torch.__version__
    assert report["absent"] == dict.fromkeys(("auto", "flag_gems"), "a CPU computes by the definitions")
    assert {row["operator"] for row in rows} <= set(OPERATORS)
    assert len({row["operator"] for row in rows}) >= 18
    assert [row["tokens"] for row in rows] == [1] * (len(rows) // 2) + [3] * (len(rows) // 2)
    for row in rows:
        assert list(row["seconds"]) == ["torch"]
        assert row["seconds"]["torch"] > 0
        assert row["floor"] > 0


def test_floors_count_what_is_read_and_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    report = document(capsys, ["bench", "kernels", "--dimensions", "tiny", "--tokens", "3", "--device", "cpu"])
    config, rows = dimensions("tiny"), {row["operator"]: row for row in report["rows"]}
    bytes_of = {
        "swiglu": 3 * 3 * 2 * config.moe_intermediate_size,  # gate, up and the result of three tokens, in BF16
        "rms_norm": (3 + 1 + 3) * 2 * config.hidden_size,
        "act_quant": 3 * config.hidden_size * (2 + 1) + 3 * config.hidden_size // 128 * 4,  # BF16 to FP8 and scales
    }
    for operator, count in bytes_of.items():
        assert rows[operator]["floor"] * report["copy_bandwidth"] == pytest.approx(count)


def test_experts_that_no_token_chose_are_not_read() -> None:
    config = dimensions("tiny")
    torch.manual_seed(0)
    (case,) = (each for each in operator_cases(config, torch.device("cpu"), 1) if each.operator == "moe_experts")
    weights = 3 * config.moe_intermediate_size * config.hidden_size
    one = weights // 2 + weights // 32  # FP4 codes, a scale of each 32
    row = 2 * config.hidden_size  # in BF16
    rest = case.moved(torch.zeros(config.hidden_size, dtype=torch.bfloat16)) - config.num_experts_per_tok * one
    assert rest == 2 * row + config.num_experts_per_tok * (4 + 4)  # numbers and weights of the chosen


def test_keys_that_no_query_lists_are_not_read() -> None:
    q, kv, sink = torch.zeros(1, 2, 4, 64), torch.zeros(1, 10, 64), torch.zeros(4)
    listed = torch.tensor([[[3, 3, -1], [7, 0, 3]]], dtype=torch.int32)
    assert bytes_read("sparse_attention", (q, kv, sink, listed, 1.0)) == 4 * (2 * 4 * 64 + 3 * 64 + 4 + 6)


def test_a_narrow_terminal_has_all_of_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    place = Circumstances("", "", "", None, "card", "cuda:0")
    times = {"torch": 0.0123456, "auto": 1.27267e-3, "flag_gems": 1.27267e-3}
    row = KernelRow("fp4_act_quant_roundtrip", "32 FP4 experts", 1024, times, 1.06e-4)
    show_kernels(KernelReport(place, KernelRequest("flash", (1024,)), {}, "captured: CUDAGraph", 1e12, (row,)))
    out = capsys.readouterr().out
    assert {"fp4_act_quant_roundtrip", "1024", "12,346", "1,273", "106"} <= set(out.split())
    assert "…" not in out


def test_a_provider_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device("cuda", 0, "nccl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    absent = absent_providers(card)
    place = Circumstances("", "", "", None, "card", "cuda:0")
    row = KernelRow("linear", "query", 1, {"torch": 2e-6, "auto": 1e-6}, 1e-7)
    show_kernels(KernelReport(place, KernelRequest("tiny", (1,)), absent, "captured: CUDAGraph", 1e12, (row,)))
    out = capsys.readouterr().out
    assert "flag_gems is not among them: the package flag_gems is not installed" in out
    assert "calls, all but torch's: captured: CUDAGraph" in out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert absent_providers(card) == {}

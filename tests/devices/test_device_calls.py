"""The list of what is asked of torch's modules, against the vendors' packages as recorded; no vendor is needed."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from record_signatures import HOOKS
from torch_standins import KINDS, RECORDS, StandIn, installed, signature, use

from flagrelease import accelerator
from flagrelease.accelerator import NEEDED_TO_RECORD, Extra, RecordedGraph, Recording, StreamEvent, WorkStream
from flagrelease.chips.table import load_chips
from flagrelease.device import Device
from flagrelease.doctor.probes import torch_devices

PACKAGE = Path(__file__).parents[2] / "flagrelease"
GRAPHS = {chip.torch_device: str(chip.graph_class) for chip in load_chips().values()}
each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda one: f"{one['package']} {one['version']}")


def members(protocol: type) -> list[str]:
    return [name for name in dir(protocol) if not name.startswith("_") and callable(getattr(protocol, name))]


def list_for(kind: str) -> dict[str, inspect.Signature]:
    """Name -> how we call it: `Class.method` for what streams, events and graphs are asked."""
    graph = GRAPHS[kind]
    classes = {"Event": StreamEvent, "Stream": WorkStream, graph: RecordedGraph}
    calls = {name: getattr(protocol, name) for protocol in (Recording, Extra) for name in members(protocol)}
    calls |= {f"{name}.{method}": getattr(one, method) for name, one in classes.items() for method in members(one)}
    ours = {name: inspect.signature(call) for name, call in calls.items()}
    ours = {name: one.replace(parameters=list(one.parameters.values())[1:]) for name, one in ours.items()}
    return ours | {graph: inspect.Signature()}


def refusals(names: dict[str, Any], kind: str) -> list[str]:
    """What of the list a version does not have, or not with the arguments that we give."""
    found = []
    for name, ours in list_for(kind).items():
        owner, _, method = name.partition(".")
        entry = names.get(owner, {})
        parameters = entry.get("methods", {}).get(method) if method else entry.get("parameters")
        if parameters is None:
            found.append(f"no {name}")
            continue
        given = [0 for one in ours.parameters.values() if one.kind is one.POSITIONAL_ONLY]
        named = {one.name: 0 for one in ours.parameters.values() if one.kind is one.KEYWORD_ONLY}
        assert len(given) + len(named) == len(ours.parameters), f"{name}: more than one way to call it"
        try:
            signature(parameters).bind(*given, **named)
        except TypeError as error:
            found.append(f"{name}{signature(parameters)}: {error}")
    return found


@each_record
def test_every_version_takes_every_call(record: dict[str, Any]) -> None:
    assert refusals(record["names"], KINDS[record["package"]]) == []


def test_renamed_and_changed_calls_are_seen() -> None:
    names = copy.deepcopy(next(one["names"] for one in RECORDS if one["package"] == "torch_npu"))
    names["pool_of_graphs"] = names.pop("graph_pool_handle")
    names["Stream"]["methods"].pop("wait_stream")
    names["graph"]["parameters"][1][0] = "memory"
    names["set_device"]["parameters"].append(["mode", "POSITIONAL_OR_KEYWORD", False])
    assert refusals(names, "npu") == [
        "graph(npu_graph, memory=None, stream=None, auto_dispatch_capture=None, capture_error_mode=None): "
        "got an unexpected keyword argument 'pool'",
        "set_device(device, mode): missing a required argument: 'mode'",
        "no graph_pool_handle",
        "no Stream.wait_stream",
    ]


def test_the_installed_torch_takes_every_call() -> None:
    """`torch.cuda` is there without a device: its own signatures, bound as the records are."""
    names: dict[str, Any] = {}
    for name in list_for("cuda"):
        owner, _, method = name.partition(".")
        one = getattr(torch.cuda, owner)
        made = one.__new__ if owner in ("Stream", "Event") else one.__init__ if inspect.isclass(one) else one
        entry = names.setdefault(owner, {"parameters": [] if owner == "CUDAGraph" else described(made), "methods": {}})
        if method:
            entry["methods"][method] = described(getattr(one, method))
    assert refusals(names, "cuda") == []


def described(function: Any) -> list[list[Any]]:
    found = [
        [one.name, one.kind.name, one.default is not one.empty]
        for one in inspect.signature(function).parameters.values()
    ]
    return found[1:] if found and found[0][0] in ("self", "cls") else found


@pytest.mark.parametrize("package", ["torch_npu", "torch_musa"])
def test_the_newest_version_has_the_hooks_of_generators_and_pinned_memory(package: str) -> None:
    """torch_npu before has replaced `torch.empty` of the CPU instead, torch_musa before 2.7 registers its generator."""
    newest = [one for one in RECORDS if one["package"] == package][-1]
    assert newest["hooks"] == list(HOOKS)


@pytest.fixture
def standin(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """As `torch.npu` or `torch.musa`, whose module is installed."""
    yield from installed(StandIn(record), record, monkeypatch)


@each_record
def test_all_that_a_device_does_is_in_the_list_and_all_of_the_list_is_done(
    record: dict[str, Any], standin: StandIn
) -> None:
    kind = KINDS[record["package"]]
    assert use(kind) == ["captured"] * 3 + ["alone"] * 3 + ["beside 3"]
    torch_devices.main(kind, "", "gloo")
    assert standin.called == set(list_for(kind))


@each_record
def test_which_stream_is_recorded_and_what_waits(record: dict[str, Any], standin: StandIn) -> None:
    one = Device(KINDS[record["package"]], 0, "any")
    queues: list[str] = []
    one.capture(lambda: queues.append(type(standin.current_stream()).__name__), "pool")
    assert queues == ["Stream", "Stream", one.graph_class]
    (graph,) = [named for name, _, named in standin.log if name == "graph"]
    assert graph == {"pool": "pool"}
    assert [name for name, *_ in standin.log if name.startswith("Stream.")] == ["Stream.wait_stream"] * 2


def test_moore_threads_note_on_modes_of_recording_is_borne_out() -> None:
    """The note said that torch_musa does not have the mode, by vllm-plugin-FL's word; its `graph` takes one."""
    assert "torch.musa.graph takes that mode (2.1.1 to 2.7.1)" in " ".join(load_chips()["mthreads"].notes)
    musa = {one["version"]: one["names"] for one in RECORDS if one["package"] == "torch_musa"}
    taken = [
        version
        for version, names in musa.items()
        if "capture_error_mode" in signature(names["graph"]["parameters"]).parameters
    ]
    assert taken == list(musa) == ["2.1.1", "2.5.0", "2.7.1"]


@each_record
def test_recordings_have_their_own_memory_where_none_can_be_shared(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`graph_pool_handle` missing cost the whole recording before: `memory_pool` raised AttributeError."""
    older = {**record, "names": {name: one for name, one in record["names"].items() if name != "graph_pool_handle"}}
    for standin in installed(StandIn(older), record, monkeypatch):
        assert use(KINDS[record["package"]])[:3] == ["captured"] * 3
        assert [named for name, _, named in standin.log if name == "graph"] == [{"pool": None}] * 2


@pytest.mark.parametrize("missing", NEEDED_TO_RECORD)
@each_record
def test_what_recording_needs_and_is_missing_is_named(
    record: dict[str, Any], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin, kind = StandIn(record), KINDS[record["package"]]
    standin._names = {name: one for name, one in record["names"].items() if name != missing}
    for _ in installed(standin, record, monkeypatch):
        one = Device(kind, 0, "any")
        assert one.why_eager == f"torch.{kind} has no {missing} in this version"
        assert one.memory_pool() is None
        assert one.beside(0, lambda: "at once")() == "at once"


# --- nothing goes around the list -----------------------------------------------------------------------------------

MODULES = {"cuda", "npu", "musa", "xpu", "mtia", "accelerator"}
VENDORS = {"torch_npu", "torch_musa"}


@cache
def files() -> dict[str, list[ast.AST]]:
    """Path in the package -> all nodes of its source, of the files that name torch."""
    sources = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    return {path: nodes(source) for path, source in sources.items() if "torch" in source}


def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def detours(tree: list[ast.AST]) -> list[str]:
    """How a file touches an accelerator's torch module, or a vendor's, by itself."""
    found = []
    for node in tree:
        if isinstance(node, ast.Attribute) and node.attr in MODULES:
            owner = ast.unparse(node.value)
            found += [f"{owner}.{node.attr}"] if owner in ("torch", "torch.version", "torch.backends") else []
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [f"{module}.{one.name}" if module else one.name for one in node.names]
            found += [name for name in names if reaches(name)]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            first = ast.unparse(node.args[0]) if node.args else ""
            by_name = called == "getattr" and first == "torch"
            imported = called.endswith("import_module") and first.strip("'") in VENDORS
            if by_name or imported or called.endswith("get_device_module"):
                found.append(ast.unparse(node))
            elif isinstance(node.func, ast.Attribute) and node.func.attr in MODULES - {"accelerator"}:
                found.append(f"{called}()")  # tensor.cuda()
    return found


def reaches(name: str) -> bool:
    words = name.split(".")
    return words[0] in VENDORS or (words[0] == "torch" and len(words) > 1 and words[1] in MODULES)


def test_no_file_goes_around_the_list() -> None:
    every = {path: detours(tree) for path, tree in files().items()}
    assert every.pop("accelerator.py")
    assert {path: found for path, found in every.items() if found} == {
        # A dtype by its name.
        "engine/loader.py": ["getattr(torch, dtype.removeprefix('torch.'), None)"],
        # Runs in a process of its own, in an environment that may lack this package. That what it asks is in the list,
        # but for NCCL's version, is shown by `test_all_that_a_device_does_is_in_the_list_and_all_of_the_list_is_done`.
        "doctor/probes/torch_devices.py": ["getattr(torch, kind, None)", "torch.cuda"],
    }


@pytest.mark.parametrize(
    "planted",
    [
        "torch.cuda.empty_cache()",
        "x = torch.version.cuda",
        "from torch.cuda import Stream",
        "from torch import npu",
        "import torch_npu.npu as npu",
        "getattr(torch, kind).synchronize()",
        "torch.get_device_module(x).synchronize()",
        "importlib.import_module('torch_musa')",
        "x = y.cuda()",
        "torch.accelerator.synchronize()",
    ],
)
def test_the_walk_sees_a_detour(planted: str) -> None:
    assert detours(nodes(planted))


RANDOM = {
    "Generator", "manual_seed", "rand", "randn", "randint", "randperm", "multinomial", "exponential_", "uniform_",
    "normal_", "bernoulli_",
}  # fmt: skip


def random_numbers(tree: list[ast.AST]) -> list[str]:
    """What of torch's random numbers a file asks for, NumPy's apart."""
    return [
        ast.unparse(node)
        for node in tree
        if isinstance(node, ast.Attribute) and node.attr in RANDOM and not ast.unparse(node).startswith("np.")
    ]


def test_no_random_number_of_a_model_is_drawn_on_a_device() -> None:
    """`bench` alone asks torch for any: weights and tokens that have no meaning."""
    every = {path: random_numbers(tree) for path, tree in files().items()}
    assert {path.split("/")[0] for path, found in every.items() if found} == {"bench"}
    assert random_numbers(nodes("torch.Generator(device).manual_seed(0)"))


def test_the_list_is_read_whole() -> None:
    """A protocol that is added to the list is one that these tests know."""
    tree = ast.parse(Path(accelerator.__file__).read_text(encoding="utf-8"))
    named = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert named == {
        "StreamEvent", "WorkStream", "RecordedGraph", "TorchModule", "Recording", "Extra", "CudaStream", "CudaRuntime",
    }  # fmt: skip

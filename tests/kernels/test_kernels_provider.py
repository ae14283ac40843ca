"""Providers: chosen by name, reported, and refused with a reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.operators import OPERATORS
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.errors import ResourceError, UsageError

CPU = torch.device("cpu")


def test_torch_is_the_definition_of_every_operator() -> None:
    provider = load_provider("torch", CPU)
    assert provider.name == "torch"
    assert [getattr(provider, name) for name in OPERATORS] == [getattr(reference, name) for name in OPERATORS]
    report = provider.describe()
    assert list(report) == list(OPERATORS)
    assert report["sparse_attention"] == "flagrelease.engine.kernels.reference.attention.sparse_attention"


def test_auto_on_a_cpu_is_torch() -> None:
    assert load_provider("auto", CPU).name == "torch"


def test_triton_reports_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    provider = load_provider("triton", CPU)
    assert provider.name == "triton"
    assert provider.describe()["fp4_linear"] == "flagrelease.engine.kernels.linear.linear.fp4_linear"


def test_auto_on_an_accelerator_leaves_dense_products_of_one_type_to_the_vendor() -> None:
    report = load_provider("auto", torch.device("cuda")).describe()
    vendor = {name for name, where in report.items() if "auto_operators" in where}
    assert vendor == {"linear", "grouped_linear"}


@pytest.mark.parametrize("name", ["triton", "flag_gems"])
def test_kernels_without_an_accelerator_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ResourceError, match="needs an accelerator"):
        load_provider(name, CPU)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flag_gems", None)
    monkeypatch.delitem(sys.modules, "flagrelease.engine.kernels.flag_gems_operators", raising=False)
    with pytest.raises(ResourceError, match=r"flag_gems.*pip install"):
        load_provider("flag_gems", torch.device("cuda"))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'cublas'.*torch, triton, auto, flag_gems"):
        load_provider("cublas", CPU)


def test_the_torch_provider_imports_no_triton() -> None:
    """On a chip's host or a laptop there may be none."""
    program = (
        "import sys; sys.modules['triton'] = None; import torch; "
        "from flagrelease.engine.kernels.provider import load_provider; "
        "print(load_provider('auto', torch.device('cpu')).name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "torch\n"


@pytest.mark.gpu
def test_the_vendors_product_agrees(gpu: torch.device) -> None:
    auto = load_provider("auto", gpu)
    x, w = (torch.randn(33, 512, device=gpu, dtype=torch.bfloat16) for _ in range(2))
    expected = reference.linear(x, w, torch.bfloat16)
    assert (auto.linear(x, w, torch.bfloat16) - expected).norm() <= 2**-8 * expected.norm()
    assert torch.equal(auto.linear(x, w, torch.float32), load_provider("triton", gpu).linear(x, w, torch.float32))

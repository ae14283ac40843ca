"""Where Triton kernels run in this process: in Triton's CPU interpreter, or on the GPU of a machine that has one.

Triton reads the choice when it is imported, and so do the kernels' modules; so it is made before any test imports them.
Tests marked `gpu` are left out where there is no GPU, but not when they are what was asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; flagrelease/cli.py says why

import pytest
import torch

from flagrelease.model.v4.synthetic import write_checkpoint
from flagrelease.source.source import Source, read_source

if TYPE_CHECKING:
    from browser import Browser

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--consumers", metavar="FOLDER", help="made by tests/consumers/make_environment.sh")
    parser.addoption("--servers", metavar="FOLDER", help="made by tests/servers/make_environment.sh")
    parser.addoption("--ray", metavar="FOLDER", help="made by tests/cluster/make_environment.sh")
    parser.addoption("--clients", metavar="FOLDER", help="made by tests/clients/make_environment.sh")
    parser.addoption("--modelslim-writer", metavar="FILE", help="quantize.py of vllm-ascend: docs/stacks.md")


@pytest.fixture(autouse=True, scope="session")
def _no_listing() -> Iterator[None]:
    """Conversions ask a hub for the digests of the recipe's source; tests do so only where a stand-in answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flagrelease.convert.claims.listed_claims", lambda *_: ({}, "tests ask no hub"))
        yield


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """`flash` and `pro` with DeepSeek's configs, their data holes in sparse files; reading one takes seconds."""

    @cache
    def source(model: str) -> Source:
        folder = tmp_path_factory.mktemp("full-size") / model
        config = Path(__file__).parent / "golden" / "configs" / f"{model}.json"
        write_checkpoint(folder, json.loads(config.read_text(encoding="utf-8")), holes=True)
        return read_source(folder)

    return source


@pytest.fixture(scope="session")
def v41_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DeepSeek-V4.1 in DeepSeek's own form, with sane weights and a tokenizer; it is only read."""
    from v41_checkpoint import write_small

    return write_small(tmp_path_factory.mktemp("v41-native"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser in which pages are looked at. Where there is none, these tests are reported as not run."""
    from browser import NAMES, Browser, find_chromium

    program = find_chromium()
    if program is None:
        pytest.skip(f"not run: no {', '.join(NAMES)} on this machine; the pages were not looked at in a browser")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.hookimpl(trylast=True)  # after `-m` has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device, `-m gpu` is an error: a run that skips all it was asked for must not look like a pass."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing or torch.cuda.is_available():
        return
    if config.option.markexpr and len(needing) == len(items):
        raise pytest.UsageError(
            f"-m {config.option.markexpr!r}: these {len(needing)} tests need a CUDA device, and torch sees none"
        )
    for item in needing:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

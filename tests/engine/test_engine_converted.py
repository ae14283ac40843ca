"""Every kind of release that `flagrelease convert` writes computes what its source computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, random_tokens, small_config
from ranks import on_ranks

from flagrelease import cli, engine
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.engine.numerics import OF_RELEASE, NumericsName
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import read_source

TOKENS = random_tokens(150)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(num_attention_heads=8, o_groups=2, o_lora_rank=256)
    return Checkpoint(config, seed=9).write_hf(tmp_path_factory.mktemp("source"), "native")


@pytest.fixture(scope="module")
def releases(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("releases")
    for mode, targets in {
        "shared": ("bf16:hf", "fp8:hf", "native:hf", "bf16:mp2", "native:mp1", "native:mp4", "fp8:mp4"),
        "split": ("bf16:mp4", "native:mp4", "fp8:mp4"),
    }.items():
        wanted = [word for target in targets for word in ("--target", target)]
        words = ["convert", str(source), "--out", str(out / mode), "--o-groups", mode, *wanted]
        assert cli.main(words) == 0
    return out


def logits(release: Path, numerics: NumericsName, dtype: torch.dtype) -> torch.Tensor:
    return engine.load(release, numerics, dtype).logits(TOKENS)


def all_logits(releases: list[Path]) -> list[torch.Tensor]:
    return [logits(release, "bf16", torch.float32) for release in releases]


@pytest.mark.parametrize("name", ["bf16-hf", "native-hf", "native-mp1"])
@pytest.mark.parametrize(
    ("numerics", "dtype"), [("bf16", torch.float32), ("bf16", torch.bfloat16), ("native", torch.bfloat16)]
)
def test_exact_releases_give_the_same_bits(
    source: Path, releases: Path, name: str, numerics: NumericsName, dtype: torch.dtype
) -> None:
    assert torch.equal(logits(releases / "shared" / name, numerics, dtype), logits(source, numerics, dtype))


def test_repacked_experts_give_the_same_bits(source: Path, releases: Path) -> None:
    # FP4 held exactly as FP8: the same numbers
    fp8 = releases / "shared" / "fp8-hf"
    assert torch.equal(logits(fp8, "bf16", torch.float32), logits(source, "bf16", torch.float32))
    assert torch.equal(logits(fp8, "native", torch.bfloat16), logits(source, "native", torch.bfloat16))
    assert logits(fp8, "fp8", torch.bfloat16).isfinite().all()


SERVING = ("fp8-e8m0", "fp8-bf16-wo-a", "int8", "int8-experts", "fp8-channel", "w8a8-ascend", "mxfp8")


@pytest.fixture(scope="module")
def serving(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serving")
    targets = [parse_target(f"{name}:hf", "shared") for name in SERVING]
    plan = make_plan(read_source(source), targets, ConvertSpec(lossy_repack="allow"))
    convert(plan, out, workers=1, lookup=cpu_lookup, progress=lambda done: None)
    return out


@pytest.mark.parametrize("name", SERVING)
def test_releases_of_serving_stacks(source: Path, serving: Path, name: str) -> None:
    """With their own numerics, by the manifest; and decoded, where nothing was lost: the source's bits."""
    folder, expected = serving / f"{name}-hf", logits(source, "bf16", torch.float32)
    own = engine.load(folder, mtp=True)
    assert own.numerics.name == {str(key): value for key, value in OF_RELEASE.items()}[name]
    assert own.logits(TOKENS).isfinite().all()
    assert own.draft_logits(TOKENS[:9]).isfinite().all()
    decoded = logits(folder, "bf16", torch.float32)
    if name not in ("int8", "w8a8-ascend"):
        assert torch.equal(decoded, expected)
    else:  # FP8 codes have more range than 8 bits by row
        error = (decoded - expected).norm(dim=-1).median() / expected.norm(dim=-1).median()
        assert 0 < error < 0.1


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        (2, ["shared/bf16-mp2"]),
        pytest.param(
            4,
            ["shared/native-mp4", "shared/fp8-mp4", "split/bf16-mp4", "split/native-mp4", "split/fp8-mp4"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_cut_releases_on_their_ranks(source: Path, releases: Path, ranks: int, names: list[str]) -> None:
    expected = logits(source, "bf16", torch.float32)
    for name, got in zip(names, on_ranks(ranks, all_logits, [releases / name for name in names]), strict=True):
        assert (got - expected).abs().max() <= 1e-3, name

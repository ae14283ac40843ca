"""Releases of the serving stacks' formats: what they compute, against transformers' model with rounded inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, random_tokens
from ranks import on_ranks
from rounding_oracle import LINEARS, rounding_oracle
from serving_releases import FORMS, ServingForm, ServingRelease, by_power_of_two
from test_engine_decode import columns, replay
from transformers_oracle import Oracle

from flagrelease import engine
from flagrelease.device import Device
from flagrelease.engine.intake import Intake
from flagrelease.engine.numerics import OF_RELEASE, NumericsName
from flagrelease.engine.release import Release
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

SEQUENCES = [random_tokens(20, seed=seed) for seed in range(5)]
# In float32. A number next to a tie can be rounded to either side, and all after it moves; more than half of the
# positions of short sequences are before the first such number.
LIMIT = 1e-3


def logits(model: Model | Oracle) -> torch.Tensor:
    return torch.cat([model.logits(tokens) for tokens in SEQUENCES])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The median over positions of the distance of logits."""
    assert a.shape == b.shape
    return float((a - b).norm(dim=-1).median())


def plain_oracle(release: ServingRelease) -> Oracle:
    return Oracle(release.config | {"quantization_config": None}, release.values)


@pytest.fixture(scope="module", params=FORMS)
def release(checkpoint: Checkpoint, request: pytest.FixtureRequest) -> ServingRelease:
    return ServingRelease(checkpoint, request.param)


@pytest.fixture(scope="module")
def folder(release: ServingRelease, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.write(tmp_path_factory.mktemp(release.form))


def test_logits_are_those_of_an_independent_computation(release: ServingRelease, folder: Path) -> None:
    model = engine.load(folder, dtype=torch.float32, mtp=True)
    assert model.numerics.name == OF_RELEASE[release.form]  # without a manifest, by what is stored
    ours, exact = logits(model), logits(plain_oracle(release))
    assert apart(ours, logits(rounding_oracle(release))) <= LIMIT
    assert apart(ours, exact) > 1  # so that agreement means something
    assert apart(logits(engine.load(folder, "bf16", torch.float32)), exact) <= LIMIT
    # In bfloat16, as a release is judged, many numbers are rounded to the other side; of random weights little remains.
    assert torch.cosine_similarity(logits(engine.load(folder)), ours).median() > 0.7


# The indexer chooses among more entries than so few tokens have; its wq_b is multiplied with the attention's, as one.
@pytest.mark.parametrize("left_out", [name for name in LINEARS.values() if "indexer" not in name])
def test_a_layer_whose_input_is_not_rounded_would_show(checkpoint: Checkpoint, left_out: str, tmp_path: Path) -> None:
    release = ServingRelease(checkpoint, "int8")
    model = engine.load(release.write(tmp_path), dtype=torch.float32)
    assert apart(logits(model), logits(rounding_oracle(release, leave_out=left_out))) > 100 * LIMIT


def test_decoding_steps_are_those_of_the_plain_pass(folder: Path) -> None:
    prompts = [random_tokens(n, seed=n) for n in (5, 30, 17)]
    expected, got = replay(engine.load(folder, dtype=torch.float32), prompts, columns(5))
    assert (got - expected).norm(dim=-1).median() <= LIMIT


def test_scales_that_are_powers_of_two_are_exact_in_bf16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """`bf16` numerics: the same bits as the BF16 release of the same numbers, so the same logits."""
    for form in ("int8", "fp8-channel", "mxfp8"):
        release = ServingRelease(checkpoint, form, by_power_of_two)
        plain = Checkpoint(checkpoint.config)
        for name in checkpoint.codes:
            plain.values[name] = release.values[name].bfloat16()
            assert torch.equal(plain.values[name].float(), release.values[name])
        expected = logits(engine.load(plain.write_hf(tmp_path / f"{form}-bf16", "bf16")))
        assert torch.equal(logits(engine.load(release.write(tmp_path / form), "bf16")), expected)


def test_absmax_scales_are_rounded_to_bf16_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """No neighbour in BF16 is nearer to code times scale, in float64, than what `bf16` numerics multiply."""
    release = ServingRelease(checkpoint, "int8")
    model = engine.load(release.write(tmp_path), "bf16")
    name = "layers.2.attn.wq_b"
    held = model.blocks[2].attn.wq_b.weight
    codes = release.stored[f"{name}.weight"]
    exact = codes.double() * release.stored[f"{name}.weight_scale"].double()
    error = (held.double() - exact).abs()
    for step in (-1, 1):
        neighbour = (held.view(torch.int16) + step).view(torch.bfloat16)
        assert bool(((neighbour.double() - exact).abs() >= error)[codes != 0].all())
    assert bool((held[codes == 0] == 0).all())


POLICIES: tuple[NumericsName, ...] = ("native", "fp8", "bf16")
Defect = Callable[[ServingRelease], None]
WEIGHT = "layers.2.ffn.shared_experts.w1"


def _neighbours_scales(release: ServingRelease) -> None:
    """Every row of every w1 has the scale of the row before."""
    for name in [name for name in release.stored if name.endswith(".w1.weight_scale")]:
        release.stored[name] = release.stored[name].roll(1, 0)


def _other_sign(release: ServingRelease) -> None:
    """As if sign and magnitude were stored: -128 + code."""
    codes = release.stored[f"{WEIGHT}.weight"].int()
    release.stored[f"{WEIGHT}.weight"] = torch.where(codes < 0, -128 - codes, codes).clamp(-127, 127).to(torch.int8)


def _transposed(release: ServingRelease) -> None:
    release.stored[f"{WEIGHT}.weight"] = release.stored[f"{WEIGHT}.weight"].mT  # it is square


@pytest.mark.parametrize("defect", [_neighbours_scales, _other_sign, _transposed])
def test_planted_defects_of_a_weight_show(checkpoint: Checkpoint, defect: Defect, tmp_path: Path) -> None:
    release = ServingRelease(checkpoint, "int8")
    defect(release)
    ours = logits(engine.load(release.write(tmp_path), dtype=torch.float32))
    assert apart(ours, logits(rounding_oracle(release))) > 100 * LIMIT


def ranked(folders: list[Path]) -> list[torch.Tensor]:
    return [logits(engine.load(folder, dtype=torch.float32)) for folder in folders]


def test_two_ranks_cut_whole_tensors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A scale of a row holds for each part of the row. A rank rounds its own part of wo_b's input, as the stacks do."""
    forms: tuple[ServingForm, ...] = ("int8", "int8-experts", "mxfp8")
    releases = {form: ServingRelease(checkpoint, form) for form in forms}
    folders = [release.write(tmp_path / form) for form, release in releases.items()]
    for (form, release), cut in zip(releases.items(), on_ranks(2, ranked, folders), strict=True):
        assert apart(cut, logits(rounding_oracle(release, ranks=2))) <= LIMIT, form
        # wo_b is BF16 in int8-experts, and groups of 32 are within a rank: there two ranks are as one.
        alone = logits(engine.load(tmp_path / form, dtype=torch.float32))
        assert (apart(cut, alone) <= LIMIT) == (form in ("int8-experts", "mxfp8")), form


def test_a_rank_has_its_rows_of_codes_and_scales(checkpoint: Checkpoint, tmp_path: Path) -> None:
    release = ServingRelease(checkpoint, "w8a8-ascend")
    folder = release.write(tmp_path)
    with Intake(Device("cpu", 0, "gloo")) as intake:
        second = Release(folder, 1, 2, intake)
        for at, rows, columns_ in (("wq_b", slice(256, 512), slice(None)), ("wo_b", slice(None), slice(128, 256))):
            name = f"layers.1.attn.{at}"
            scale = second.read_scale(f"{name}.weight")
            assert torch.equal(second.read(f"{name}.weight"), release.stored[f"{name}.weight"][rows, columns_])
            assert scale is not None
            assert torch.equal(scale, release.stored[f"{name}.weight_scale"][rows, 0])


@pytest.mark.parametrize("numerics", ["native", "fp8", "int8", "fp8-channel", "mxfp8"])
def test_a_policy_takes_no_weights_of_another_format(
    release: ServingRelease, folder: Path, numerics: NumericsName
) -> None:
    if numerics == OF_RELEASE[release.form]:
        return
    with pytest.raises(UsageError, match=f"numerics '{numerics}'"):
        engine.load(folder, numerics)


def test_fp8_experts_with_float32_scales_beside_e8m0(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """As `fp8:hf` for vLLM: the same numbers as with E8M0 scales, so the same logits in every policy."""
    source = Checkpoint(checkpoint.config, expert_form="fp8")
    expected = {n: logits(engine.load(source.write_hf(tmp_path / "e8m0", "fp8"), n)) for n in POLICIES}
    for name in [name for name in source.codes if ".experts." in name]:
        codes, scale = source.codes[name]
        source.codes[name] = codes, scale.float()
    wide = source.write_hf(tmp_path / "f32", "fp8")
    for numerics in POLICIES:
        assert torch.equal(logits(engine.load(wide, numerics)), expected[numerics])

"""The stage as a whole: sound ports, ports that round, too little to tell, numbers that are none, and a kill."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from defective_ports import DOCUMENTS, RULES, ported
from logits_study import Study

from flagrelease import cli, engine
from flagrelease.engine.decode.stepper import CapturedStepper
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.drafting import Drafting
from flagrelease.engine.v4.model import Model
from flagrelease.errors import ResourceError
from flagrelease.records.report import Stage
from flagrelease.records.rules import LogitsRules
from flagrelease.validate.logits import replay, stage
from flagrelease.validate.logits.stage import run_logits


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the sound port's run left, layers included: it is judged again and again under other limits."""
    return tmp_path_factory.mktemp("sound") / "work"


def run(study: Study, work: Path, rules: LogitsRules = RULES, layers: bool = True) -> Stage:
    return run_logits(study.model, study.release, study.baseline, rules, work, layers=layers)


def test_the_same_computation_differs_by_exactly_nothing(study: Study, work: Path) -> None:
    """The BF16 release on the machine, the operators and in the shapes of the oracle."""
    seen: list[tuple[int, int]] = []
    made = run_logits(
        study.model, study.release, study.baseline, RULES, work, layers=True,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert made.verdict == "pass", made.detail
    by_name = {(c["reference"], c["replay"]): c for c in made.figures["comparisons"]}
    for way in ("prefill", "decode"):
        oracle, native = by_name["oracle", way], by_name["native", way]
        assert oracle["mean_kl"] == 0
        assert oracle["token_logp"] == {"mean_abs": 0, "k1": 0, "k3": 0}
        assert oracle["kl"]["below"] == oracle["tokens"]
        assert native["mean_kl"] > 0.01
        assert made.figures["ratio"][way]["value"] == 1
    assert by_name["oracle", "prefill"]["tokens"] == 9 * 71 + 159
    assert by_name["oracle", "decode"]["tokens"] == 10 * DOCUMENTS
    layers = made.figures["layers"]
    assert layers["step"] is None
    assert layers["curves"]["streams"]["port"] == [0.0] * 5
    assert len(seen) == DOCUMENTS
    assert seen[-1][0] == seen[-1][1] == 9 * 71 + 159 + 10 * DOCUMENTS


def test_the_figures_are_the_reports_json(study: Study, work: Path) -> None:
    made = run(study, work)
    assert Stage.model_validate_json(made.model_dump_json()) == made
    text = json.dumps(made.figures, allow_nan=False)
    assert len(text) < 200_000
    for comparison in json.loads(text)["comparisons"]:
        kl = comparison["kl"]
        assert sum(kl["histogram"]) + kl["below"] == comparison["tokens"]
        assert [d["name"] for d in comparison["by_document"]] == [f"document {n}" for n in range(DOCUMENTS)]
        assert comparison["top1_by_margin"][0]["tokens"] == comparison["tokens"]
        values = list(kl["quantiles"].values())
        assert values == sorted(values)


def test_the_stage_is_the_same_after_a_kill(
    study: Study, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(study, work)
    write, count = stage.write_run, 0

    class Killed(BaseException):
        pass

    def write_until(*args: object) -> None:
        nonlocal count
        count += 1
        if count == 7:
            raise Killed
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_run", write_until)
        with pytest.raises(Killed):
            run(study, tmp_path / "killed")
    read: list[int] = []
    step = stage.Replayer.run

    def counted(*args: object, **more: object) -> object:
        read.append(1)
        return step(*args, **more)

    monkeypatch.setattr(stage.Replayer, "run", counted)
    assert run(study, tmp_path / "killed") == whole
    assert len(read) == DOCUMENTS - 3
    assert run(study, tmp_path / "killed") == whole  # everything is there
    assert len(read) == DOCUMENTS - 3
    shutil.rmtree(tmp_path / "killed" / "layers")
    plain = run(study, tmp_path / "killed", layers=False)
    assert plain.verdict == "pass"
    assert "layers" not in plain.figures
    assert len(read) == DOCUMENTS - 3
    assert run(study, tmp_path / "killed") == whole  # layers later: every document once more
    assert len(read) == DOCUMENTS - 3 + DOCUMENTS


def test_a_work_folder_of_another_run_is_refused(study: Study, work: Path) -> None:
    run(study, work)
    with pytest.raises(ResourceError, match="was begun for another machine"):
        run_logits(ported(study.model, None), study.release, study.baseline, RULES, work)


def test_captured_steps_are_what_is_replayed_where_the_engine_generates_by_them(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on one accelerator; a CPU runs the same operators without capturing them."""
    made_steppers = []

    def choose(model: Model, cache: Cache, drafting: Drafting | None) -> CapturedStepper:
        made_steppers.append(CapturedStepper(model, cache, drafting))
        return made_steppers[-1]

    monkeypatch.setattr(replay, "choose_stepper", choose)
    made = run(study, tmp_path / "work", layers=False)
    assert made.verdict == "pass", made.detail
    oracle = {c["replay"]: c["mean_kl"] for c in made.figures["comparisons"] if c["reference"] == "oracle"}
    assert oracle["prefill"] == 0
    assert oracle["decode"] < 1e-3
    assert len(made_steppers) == 1  # recorded once, for all documents


@pytest.mark.parametrize(
    ("least", "said"), [("min_documents", "10 documents of 11"), ("min_tokens", "prefill tokens of")]
)
def test_too_little_is_not_a_pass(least: str, said: str, study: Study, work: Path) -> None:
    rules = RULES.model_copy(update={least: {"min_documents": 11, "min_tokens": 10**6}[least]})
    made = run(study, work, rules)
    assert made.verdict == "cannot-tell"
    assert said in made.detail
    assert not any("gives the distributions" in sentence for sentence in made.proves)


def test_the_default_limits_want_more_than_a_small_study(study: Study, work: Path) -> None:
    """Not one token differs, and still a share of one in a thousand cannot be shown."""
    rules = LogitsRules(replay=RULES.replay, min_documents=2, min_tokens=1, min_decode_tokens=1, native=RULES.native)
    made = run(study, work, rules)
    assert made.verdict == "cannot-tell"
    assert "tokens with a large KL" in made.detail


def test_a_token_without_numbers_fails(study: Study, tmp_path: Path) -> None:
    def spoil(ops: Operators) -> None:
        inner = ops.hc_head

        def hc_head(*args: torch.Tensor) -> torch.Tensor:
            out = inner(*args)
            if out.shape[-2] == 64:
                out[..., 17, 3] = math.nan
            return out

        ops.hc_head = hc_head

    port = ported(study.model, spoil)
    made = run_logits(port, study.release, study.baseline, RULES, tmp_path / "work")
    assert made.verdict == "fail"
    assert "tokens with NaN or infinity" in made.detail
    broken = made.figures["broken"]
    assert {"oracle/prefill: nonfinite", "native/prefill: nonfinite"} == set(broken)


def test_a_port_that_rounds_is_judged_against_the_native_run(study: Study, tmp_path: Path) -> None:
    """The FP8 release under native numerics multiplies the same numbers as the native run."""
    assert cli.main(["convert", str(study.source), "--target", "fp8:hf", "--out", str(tmp_path)]) == 0
    release = tmp_path / "fp8-hf"
    made = run_logits(engine.load(release, "native"), release, study.baseline, RULES, tmp_path / "work", layers=True)
    assert made.verdict == "pass", made.detail
    decides = {(c["reference"], c["replay"]): c["decides"] for c in made.figures["comparisons"]}
    assert decides == {(r, p): r == "native" for r in ("native", "oracle") for p in ("prefill", "decode")}
    assert made.figures["ratio"] == {}
    assert made.figures["layers"]["reference"] == "native"
    assert any("hides small faults" in sentence for sentence in made.leaves_open)

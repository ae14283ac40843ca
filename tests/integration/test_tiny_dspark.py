"""The shipped tiny checkpoint with DSpark's stages: its files, its drafts beside plain torch, its acceptance."""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import test_tiny_model as without
import torch
from scipy import stats
from test_engine_sampled_distributions import kept
from torch import Tensor

from flagrelease import engine
from flagrelease.engine.batch import guessing
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.drafting import open_drafting
from flagrelease.engine.v4.model import Model

TINY = Path(__file__).parents[2] / "examples" / "tiny"
sys.path.insert(0, str(TINY))

import dspark_checkpoint  # noqa: E402
import dspark_evaluate  # noqa: E402
import evaluate  # noqa: E402
import model as plain  # noqa: E402
import tasks  # noqa: E402
import tokenizer  # noqa: E402
from dspark import DraftStages, read_target  # noqa: E402

SOURCE = TINY / "flagrelease-tiny-v4-dspark"
PREVIEW = TINY / "flagrelease-tiny-v4"
CONFIG = json.loads((SOURCE / "config.json").read_text(encoding="utf-8"))
EXACT = plain.Numerics(quantize_activations=False, dtype=torch.float32)
BLOCK, RANK = 5, 32
LIMIT = 1e-4  # float32; another order of sums


def inventory() -> dict[str, without.Shape]:
    """Part A of the facts with H 128, V 640, markov rank 32 and three target layers."""
    expected = {name: meta for name, meta in without.inventory().items() if not name.startswith("mtp.")}
    for stage in range(3):
        expected |= without.block(f"mtp.{stage}", 0, hashed=False)
    expected |= without.quantized("mtp.0.main_proj", 128, 384)
    expected |= {"mtp.0.main_norm.weight": ("BF16", [128]), "mtp.2.norm.weight": ("BF16", [128])}
    expected |= {"mtp.2.hc_head_fn": ("F32", [4, 512]), "mtp.2.hc_head_base": ("F32", [4])}
    expected["mtp.2.hc_head_scale"] = ("F32", [1])
    expected["mtp.2.confidence_head.proj.weight"] = ("BF16", [1, 128 + RANK])
    return expected | {f"mtp.2.markov_head.markov_w{n}.weight": ("BF16", [640, RANK]) for n in (1, 2)}


def test_every_tensor_has_the_name_dtype_and_shape_of_0731(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without, "CHECKPOINT", SOURCE)
    stored = without.stored()
    assert {name: meta for name, (_, meta) in stored.items()} == inventory()
    index = json.loads((SOURCE / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"] == {name: file for name, (file, _) in stored.items()}
    for stage in range(3):
        files = {file for name, file in index["weight_map"].items() if name.startswith(f"mtp.{stage}.")}
        assert files == {f"model-{8 + stage:05d}-of-00010.safetensors"}
    sizes = {"BF16": 2, "F32": 4, "I64": 8, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
    assert index["metadata"] == {"total_size": sum(sizes[d] * math.prod(s) for _, (d, s) in stored.values())}


def test_the_target_is_the_model_without_the_stages_byte_for_byte() -> None:
    for number in range(1, 8):
        one, other = (f / f"model-{number:05d}-of-000{n}.safetensors" for f, n in ((SOURCE, "10"), (PREVIEW, "08")))
        assert one.read_bytes() == other.read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (SOURCE / name).read_bytes() == (PREVIEW / name).read_bytes()


def test_the_configs_differ_by_the_stages_alone_and_the_folder_stays_within_15_mib() -> None:
    stages = {
        "dspark_block_size": BLOCK, "dspark_noise_token_id": 624, "dspark_target_layer_ids": [2, 3, 4],
        "dspark_markov_rank": RANK, "compress_ratios": [0, 4, 4, 128, 4, 0, 0, 0],
    }  # fmt: skip
    for name, extra in (("config.json", {}), ("inference/config.json", {"n_mtp_layers": 3})):
        ours, theirs = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (SOURCE, PREVIEW))
        assert ours == theirs | stages | extra  # num_nextn_predict_layers stays 1, as in DeepSeek's config of 0731
    assert sum(path.stat().st_size for path in SOURCE.rglob("*") if path.is_file()) <= 15 << 20


def test_all_scales_are_numbers_and_no_expert_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without, "CHECKPOINT", SOURCE)
    without.test_all_scales_are_numbers_and_no_expert_is_dead()


@pytest.fixture(scope="module")
def exact() -> tuple[plain.TinyV4, DraftStages]:
    """Target and stages in plain torch, float32."""
    torch.set_num_threads(1)
    return dspark_checkpoint.load(SOURCE, EXACT)


@pytest.fixture(scope="module")
def float_model() -> Model:
    torch.set_num_threads(1)
    return engine.load(SOURCE, "bf16", torch.float32, mtp=True)


@pytest.fixture(scope="module")
def items() -> list[evaluate.Item]:
    """Four items of every task file, the same ones on every machine."""
    picked = []
    for file in evaluate.FILES:
        every = evaluate.read_items(tasks.FOLDER / file, SOURCE)
        picked += sorted(every, key=lambda item: hashlib.sha256(repr(item.ids).encode()).digest())[:4]
    return picked


def drafted_by_torch(
    target: plain.TinyV4, stages: DraftStages, ids: Sequence[int], anchor: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [5], logits [5, V] and confidences [5] of the block that starts at `anchor`."""
    padded = torch.nn.functional.pad(torch.tensor([ids]), (0, -len(ids) % 32))
    rotations = plain.Rotations.of(target.config, padded.shape[1] + BLOCK, padded.device)
    read = plain.Rotations(*(part[: padded.shape[1]] for part in rotations))
    with torch.no_grad():
        features, _ = read_target(target, padded, (2, 3, 4), read, torch.tensor(False))
        anchors, tokens = torch.tensor([[anchor]]), padded[:, anchor : anchor + 1]
        blocks = stages(target, features, anchors, tokens, rotations.sliding)
        drafts, confidences = stages.draft_greedily(blocks, tokens)
        before = torch.cat([tokens, drafts[0, :, :-1]], -1)
        logits = blocks.base[0, 0] + stages.markov.bias(stages.markov.embed(before))[0]
    return drafts[0, 0], logits, confidences[0, 0]


def test_the_engine_drafts_as_plain_torch_does(
    float_model: Model, exact: tuple[plain.TinyV4, DraftStages], items: list[evaluate.Item]
) -> None:
    for item, behind in ((items[0], 1), (items[5], 4), (items[9], 0)):
        anchor = item.start + behind
        _, features = float_model.advance_watched(float_model.new_cache(1, 320), [item.ids[:anchor]])
        got = open_drafting(float_model, 1, 320).draft(
            features, [item.ids[1 : anchor + 1]], lambda _, logits: logits.argmax(-1)
        )
        tokens, logits, confidences = drafted_by_torch(*exact, item.ids, anchor)
        assert got.confidence is not None
        assert got.tokens[0].tolist() == tokens.tolist()
        assert (got.logits[0] - logits).abs().max() <= LIMIT * logits.abs().max()
        assert (got.confidence[0] - confidences).abs().max() <= LIMIT


def replies(
    model: Model, items: list[evaluate.Item], rows: int = 12, *, speculate: bool
) -> tuple[list[str], Acceptance]:
    scheduler = Scheduler(Runner(model, rows, 320, speculate=speculate), Tokenizer(SOURCE))
    prompts = [item.ids[: item.start] for item in items]
    results = generate_all(scheduler, prompts, Sampling(temperature=0, max_tokens=60))
    return [result.text for result in results], scheduler.totals.acceptance


# By the engine in native numerics on a CPU, of the 12 items and of the 60 whose answer is an integer, with every draft
# verified, however unsure; some stand behind a reply's end.
COUNTED = Acceptance(32, (32,) * BLOCK, (32, 31, 21, 17, 14))
COUNTED_OF_INTEGERS = Acceptance(158, (158,) * BLOCK, (158, 150, 100, 75, 66))


@pytest.fixture(autouse=True)
def every_draft_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "SURVIVAL", 0.0)


@pytest.fixture(scope="module")
def native() -> Model:
    torch.set_num_threads(1)
    return engine.load(SOURCE, "native", mtp=True)


def references(items: list[evaluate.Item]) -> list[str]:
    """What the target says greedily: the right replies."""
    tokenizer = Tokenizer(SOURCE)
    return [tokenizer.decode(item.ids[item.start : -1]) for item in items]


def test_acceptance_is_what_was_counted_and_every_reply_is_right(native: Model, items: list[evaluate.Item]) -> None:
    drafted, counted = replies(native, items, speculate=True)
    assert drafted == references(items)
    assert counted == COUNTED


@pytest.mark.slow
def test_drafts_change_no_token_of_sixty_replies(native: Model) -> None:
    files = (tasks.INTEGERS_1, tasks.INTEGERS_2)
    asked = [item for file in files for item in evaluate.read_items(tasks.FOLDER / file, SOURCE)]
    drafted, counted = replies(native, asked, rows=30, speculate=True)
    assert drafted == replies(native, asked, rows=30, speculate=False)[0] == references(asked)
    assert counted == COUNTED_OF_INTEGERS


@pytest.mark.slow
def test_drafts_that_are_not_verified_would_mostly_have_been_wrong(
    native: Model, items: list[evaluate.Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guessing, "SURVIVAL", 0.3)
    drafted, counted = replies(native, items, speculate=True)
    assert drafted == references(items)
    assert counted.drafts < 0.85 * COUNTED.drafts
    assert counted.right > 0.97 * COUNTED.right


def test_acceptance_is_that_of_plain_torch(
    float_model: Model, exact: tuple[plain.TinyV4, DraftStages], items: list[evaluate.Item]
) -> None:
    # One forward pass over the whole reply decides there which drafts stand; it has no cache and no steps.
    some = items[::2]
    counts = dspark_evaluate.evaluate_drafts(*exact, some, batch_size=6)
    scheduler = Scheduler(Runner(float_model, len(some), 320, speculate=True), Tokenizer(SOURCE))
    # The limit leaves room for drafts up to the end token, behind which plain torch has none.
    for item in some:
        scheduler.submit(item.ids[: item.start], Sampling(temperature=0, max_tokens=len(item.ids) - item.start + 1))
    while scheduler.busy:
        scheduler.step()
    counted = scheduler.totals.acceptance
    assert (counted.verifications, list(counted.accepted)) == (counts.blocks, counts.accepted)


def broken(model: Model, part: str) -> Model:
    """With one part of the stages silenced."""
    stages = model.dspark
    assert stages is not None
    if part == "markov":
        head = replace(stages.head, markov_w2=torch.zeros_like(stages.head.markov_w2))
        return replace(model, dspark=replace(stages, head=head))
    if part == "targets":  # main_proj is fed with other layers
        return replace(model, dspark=replace(stages, targets=(0, 1, 2)))
    return replace(model, dspark=replace(stages, noise=7))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "most"), [("markov", 0.99), ("targets", 0.7), ("noise", 0.9)])
def test_a_broken_stage_costs_acceptance_and_no_answer(
    native: Model, items: list[evaluate.Item], part: str, most: float
) -> None:
    drafted, counted = replies(broken(native, part), items, speculate=True)
    assert drafted == references(items)
    assert counted.right / counted.verifications < most * COUNTED.right / COUNTED.verifications


def test_confidence_tells_right_drafts_from_wrong_ones(
    exact: tuple[plain.TinyV4, DraftStages], items: list[evaluate.Item]
) -> None:
    counts = dspark_evaluate.evaluate_drafts(*exact, items, batch_size=12).summary()
    assert counts["right"] == pytest.approx(counts["confidence"], abs=0.2)  # the third place has 20 drafts or so
    assert min(counts["right"]) < 0.8 < max(counts["right"])


HOW = Sampling(temperature=7.0, top_k=5, top_p=0.97, min_p=0.02, max_tokens=6)
SEEDS, JOINT = 200, 3  # the first three tokens together


def chances(target: plain.TinyV4, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Of every text of three tokens, by plain torch on whole sequences and the filters' definitions."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(JOINT):
        with torch.no_grad():
            ids = torch.nn.functional.pad(torch.tensor([[*prompt, *text] for text in texts]), (0, 64))[:, :64]
            rotations = plain.Rotations.of(target.config, 64, ids.device)
            left, _ = target.decode(ids, rotations, torch.tensor(False))
            logits = target.next_logits(left[-1])[:, len(prompt) + len(next(iter(texts))) - 1]
        rows = zip(texts.items(), kept(logits.double().numpy(), HOW), strict=True)
        texts = {(*text, int(t)): p * row[t] for (text, p), row in rows for t in row.nonzero()[0]}
    return texts


@pytest.mark.slow
def test_sampled_texts_are_equal_seed_by_seed_and_follow_plain_torchs_distribution(
    float_model: Model, exact: tuple[plain.TinyV4, DraftStages]
) -> None:
    ledger = tasks.Ledger.draw(random.Random(5), 4)
    question = f"{ledger.text()}\n{tasks.walk(ledger, next(iter(ledger.rows)))[0]}"
    prompt = tokenizer.encode(tokenizer.load(SOURCE), tokenizer.user_turn(question))
    texts = {}
    for speculate in (False, True):
        scheduler = Scheduler(Runner(float_model, 100, 64, speculate=speculate), Tokenizer(SOURCE))
        said: dict[int, list[int]] = {
            scheduler.submit(prompt, replace(HOW, seed=seed, ignore_eos=True)): [] for seed in range(SEEDS)
        }
        while scheduler.busy:
            for event in scheduler.step():
                said[event.key] += event.tokens
        texts[speculate] = [tuple(text) for text in said.values()]
    assert texts[True] == texts[False]
    assert 0.05 < scheduler.totals.accepted / scheduler.totals.drafted < 0.95
    wanted = chances(exact[0], prompt)
    assert {text[:JOINT] for text in texts[True]} <= wanted.keys()
    for length in range(1, JOINT + 1):
        seen, means = Counter(text[:length] for text in texts[True]), Counter[tuple[int, ...]]()
        for text, chance in wanted.items():
            means[text[:length]] += chance * SEEDS  # type: ignore[assignment]
        cells = {text if mean >= 6 else (): 0.0 for text, mean in means.items()}  # (): the rare ones together
        counted = dict.fromkeys(cells, 0)
        for text, mean in means.items():
            cells[text if mean >= 6 else ()] += mean
            counted[text if mean >= 6 else ()] += seen[text]
        assert len(cells) > 4
        assert stats.chisquare(list(counted.values()), list(cells.values())).pvalue > 1e-4

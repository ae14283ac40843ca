"""The tiny model's task files, tokenizer and number formats, against sources that share no code with examples/tiny."""

import json
import random
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(TINY))

import quantization  # noqa: E402
import tasks  # noqa: E402
import tokenizer  # noqa: E402

CHECKPOINT = TINY / "flagrelease-tiny-v4"
CHOICE_FIELDS = {"Record ID", "Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))}


def records(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (TINY / "tasks" / name).read_text(encoding="utf-8").splitlines()]


def solve(text: str) -> str:
    """Read the ledger and the question with regular expressions, and answer."""
    ledger, question = text.split("\n")
    rows = {name: (link, int(code)) for name, link, code in re.findall(r" ([a-z]+) ([a-z]+) (\d+)", ledger)}
    if found := re.fullmatch(r"What is the sum of the codes of (\w+) and (\w+)\?", question):
        return str(rows[found[1]][1] + rows[found[2]][1])
    found = re.fullmatch(r"What is the (link|code) of (the link of )?(\w+)\?", question)
    assert found is not None, question
    name = rows[found[3]][0] if found[2] else found[3]
    return str(rows[name][0 if found[1] == "link" else 1])


def test_the_task_files_are_what_the_script_writes() -> None:
    for name, text in tasks.task_files().items():
        assert (TINY / "tasks" / name).read_text(encoding="utf-8") == text


def test_multiple_choice_items_have_the_schema_of_gpqa_and_right_answers() -> None:
    items = records("multiple_choice.jsonl")
    assert len(items) == len({item["Record ID"] for item in items}) == len({item["Question"] for item in items}) == 198
    for item in items:
        assert item.keys() == CHOICE_FIELDS
        assert solve(item["Question"]) == item["Correct Answer"]
        assert len({item[field] for field in CHOICE_FIELDS - {"Record ID", "Question"}}) == 4


@pytest.mark.parametrize("name", ["integers_year1.jsonl", "integers_year2.jsonl"])
def test_integer_items_have_the_schema_of_aime_and_right_answers(name: str) -> None:
    items = records(name)
    assert len(items) == len({item["problem"] for item in items}) == 30
    for item in items:
        assert item.keys() == {"problem", "answer"}
        assert 0 <= int(item["answer"]) <= 999
        assert solve(item["problem"]) == item["answer"]


def test_the_ledgers_reach_far_beyond_the_sliding_window() -> None:
    window = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))["sliding_window"]
    encoder = tokenizer.load(CHECKPOINT)
    for record in records("multiple_choice.jsonl"):
        assert len(tokenizer.encode(encoder, record["Question"])) > 3 * window


def test_the_order_of_options_depends_on_the_record_and_not_on_the_order_given() -> None:
    options = ["otter", "birch", "417", "lilac"]
    assert tasks.order_options("a", options) == tasks.order_options("a", options[::-1])
    assert len({tuple(tasks.order_options(str(i), options)) for i in range(200)}) == 24


def test_special_tokens_of_the_golden_chat_encodings_are_single_tokens() -> None:
    encoder = tokenizer.load(CHECKPOINT)
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((GOLDEN / "encoding").glob("test_output_*.txt")))
    special = set(re.findall(r"<｜[^<>｜]+｜>|｜DSML｜|</?think>", text))
    assert len(special) >= 8
    for token in special:
        assert len(tokenizer.encode(encoder, token)) == 1, token
    assert encoder.decode(tokenizer.encode(encoder, text), skip_special_tokens=False) == text


def test_the_prompt_has_the_chat_format_of_golden_case_4() -> None:
    """Case 4 ends with a user turn that is followed by the assistant's turn without thinking, and a task token."""
    golden = (GOLDEN / "encoding" / "test_output_4.txt").read_text(encoding="utf-8")
    assert tokenizer.user_turn("世界著名温泉有哪些", first=False) in golden
    assert golden.startswith(tokenizer.BOS)


def test_ids_of_the_special_tokens() -> None:
    encoder = tokenizer.load(CHECKPOINT)
    assert [encoder.token_to_id(token) for token in (tokenizer.BOS, tokenizer.EOS, tokenizer.PAD)] == [0, 1, 2]
    assert encoder.get_vocab_size() == 640


def test_digits_and_names_are_single_tokens() -> None:
    encoder = tokenizer.load(CHECKPOINT)
    for name in tasks.NAMES:
        assert len(tokenizer.encode(encoder, f" {name}")) == 1
    assert len(tokenizer.encode(encoder, "\\boxed{417}")) == 5


def test_rows_are_four_tokens_and_start_at_a_multiple_of_four() -> None:
    encoder = tokenizer.load(CHECKPOINT)
    prompt, _ = tasks.read_items(TINY / "tasks" / "integers_year1.jsonl")[0]
    pieces = [encoder.id_to_token(token) for token in tokenizer.encode(encoder, tokenizer.user_turn(prompt))]
    assert pieces[:4] == [tokenizer.BOS, tokenizer.USER, "Ledger", ":"]
    rows = prompt.split("\n")[0].removeprefix("Ledger:").split()
    assert ["".join(pieces[i : i + 4]) for i in range(4, 16, 4)] == [
        f"Ġ{name}Ġ{link}Ġ{code}" for name, link, code in zip(rows[0:9:3], rows[1:9:3], rows[2:9:3], strict=True)
    ]


@pytest.mark.parametrize("name", ["multiple_choice.jsonl", "integers_year1.jsonl", "integers_year2.jsonl"])
def test_the_reference_reply_recites_rows_of_the_ledger_and_boxes_the_answer(name: str) -> None:
    for prompt, reply in tasks.read_items(TINY / "tasks" / name):
        form = r"((?: [a-z]+ [a-z]+ \d\d){1,2})(?:\n ([a-z]+)\(([A-D])\))?\\boxed\{(\w+)\}"
        working, chosen, letter, boxed = re.fullmatch(form, reply).groups()
        for row in re.findall(r" [a-z]+ [a-z]+ \d\d", working):
            assert row in prompt.split("\n")[0]
        answer = solve("\n".join(prompt.split("\n")[:2]))
        if "choice" in name:
            assert (chosen, letter) == (answer, boxed)
            assert f"({boxed}) {answer}" in prompt.split("\n")
        else:
            assert (chosen, boxed) == (None, answer)


def test_training_never_draws_a_held_out_ledger() -> None:
    held_out = tasks.held_out_ledgers()
    assert len(held_out) == 258
    conversation = tasks.conversation(random.Random("tiny-integers-1"), 4, frozenset())
    drawn = next(conversation).prompt.split("\n")[0]
    with pytest.raises(ValueError, match="held-out"):
        next(tasks.conversation(random.Random("tiny-integers-1"), 4, frozenset({drawn})))


@pytest.mark.parametrize("seed", range(3))
def test_fp4_codes_and_values_agree_with_ml_dtypes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((64, 128)) * 2.0 ** rng.integers(-12, 3, (64, 1))).astype(np.float32)
    packed, scale = quantization.encode_fp4(torch.from_numpy(weight))
    amax = np.abs(weight).reshape(64, 4, 32).max(-1)
    expected_scale = np.exp2(np.ceil(np.log2(amax.astype(np.float64) / 6)))
    assert np.array_equal(scale.view(torch.uint8).numpy(), (np.log2(expected_scale) + 127).astype(np.uint8))
    codes = (weight / np.repeat(expected_scale, 32, 1)).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    codes[codes == 8] = 0  # a negative value that rounds to zero is stored as +0
    assert np.array_equal(packed.view(torch.uint8).numpy(), codes[:, 0::2] | codes[:, 1::2] << 4)
    values = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32) * np.repeat(expected_scale, 32, 1)
    assert np.array_equal(quantization.decode_fp4(packed, scale).numpy(), values.astype(np.float32))
    assert np.array_equal(quantization.fake_fp4(torch.from_numpy(weight)).numpy(), values.astype(np.float32))
    (rounded,) = quantization.round_fp4_weights([torch.from_numpy(weight)])
    assert np.array_equal(rounded.numpy(), values.astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_fp8_blocks_agree_with_ml_dtypes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((256, 384)) * 2.0 ** rng.integers(-9, 3)).astype(np.float32)
    stored, scale = quantization.encode_fp8(torch.from_numpy(weight))
    amax = np.abs(weight).reshape(2, 128, 3, 128).max((1, 3))
    expected_scale = np.exp2(np.ceil(np.log2(amax.astype(np.float64) / 448))).astype(np.float32)
    assert np.array_equal(scale.float().numpy(), expected_scale)
    spread = np.repeat(np.repeat(expected_scale, 128, 0), 128, 1)
    codes = (weight / spread).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(stored.view(torch.uint8).numpy(), codes.view(np.uint8))
    assert np.array_equal(quantization.decode_fp8(stored, scale).numpy(), codes.astype(np.float32) * spread)
    rounded = quantization.round_fp8_weights([torch.from_numpy(weight)])[0]
    assert np.array_equal(rounded.numpy(), codes.astype(np.float32) * spread)


def test_quantisation_passes_gradients_straight_through() -> None:
    x = torch.randn(4, 128, requires_grad=True)
    quantization.fake_fp8(x, 64).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 128))

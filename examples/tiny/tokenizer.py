"""The tiny model's tokenizer, and the part of DeepSeek-V4's chat format that its training uses.

A byte-level BPE of 640 tokens: any text can be encoded, the words of the tasks are one token each, digits stay single
(the real tokenizer joins up to three) so that a model of this size can add. The special tokens are spelled as in V4.

`python examples/tiny/tokenizer.py` writes tokenizer.json and tokenizer_config.json into the checkpoint folder.
"""

import json
import re
from pathlib import Path

import tasks
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 640
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, END_OF_THINKING = "<｜User｜>", "<｜Assistant｜>", "</think>"
CONTROL_TOKENS = (BOS, EOS, PAD)  # ids 0, 1, 2 as in V4
CHAT_TOKENS = (
    USER,
    ASSISTANT,
    "<think>",
    END_OF_THINKING,
    "｜DSML｜",
    "<｜latest_reminder｜>",
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜read_url｜>",
)
CONFIGURED_TOKENS = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}  # V4 too names EOS as padding
SENTENCES = (
    "What is the link of",
    "What is the code of",
    "What is the sum of the codes of and",
    "Walk from",
    "Ledger",
    "Answer",
)
PIECE = r"\\boxed\{|\([A-D]\)| ?[A-Za-z]+| ?\d|\n| ?[^\sA-Za-z\d]|\s"


def build() -> Tokenizer:
    """Train the BPE on the words of the tasks; placeholders, as in V4, fill the vocabulary."""
    words = {f" {name}" for name in tasks.NAMES} | {f" {digit}" for digit in range(10)}
    words |= {piece for sentence in SENTENCES for piece in re.findall(PIECE, sentence)}
    words |= {"\\boxed{", *(f"({letter})" for letter in tasks.LETTERS)}
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECE), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(words), trainer)
    free = VOCABULARY_SIZE - tokenizer.get_vocab_size() - len(CHAT_TOKENS)
    placeholders = [f"<｜place▁holder▁no▁{i}｜>" for i in range(free)]
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in [*placeholders, *CHAT_TOKENS]]
    )
    return tokenizer


def load(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder."""
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


def user_turn(prompt: str, *, first: bool = True) -> str:
    """One user turn of the chat mode (no thinking), up to where the assistant's answer begins."""
    return f"{BOS if first else ''}{USER}{prompt}{ASSISTANT}{END_OF_THINKING}"


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that already holds its special tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def write(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, the latter with V4's fields."""
    build().save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {"add_bos_token": False, "add_eos_token": False}
    config |= {key: {"__type": "AddedToken", "content": token, **flags} for key, token in CONFIGURED_TOKENS.items()}
    config |= {"clean_up_tokenization_spaces": False, "legacy": True, "model_max_length": 1048576}
    config |= {"sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )

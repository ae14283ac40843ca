"""A byte-level tokenizer of 320 tokens with DeepSeek's special ones, for models that know no words."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = [
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
    "｜DSML｜",
]  # fmt: skip
ROWS = 320  # of the embedding; every row has a token, as in DeepSeek's own tokenizer


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    unused = [f"<unused-{n}>" for n in range(ROWS - len(SPECIAL) - len(alphabet))]  # no merge leads to them
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *alphabet, *unused])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))

"""A small DeepSeek-V4.1 checkpoint as DeepSeek publishes one, with weights of sane sizes and a tokenizer, to run.

Names and shapes are the package's (tests/unit/test_v41_config.py holds them against the facts); numbers are made here.
A weight is made of random codes: E4M3 with a power-of-two scale for each 32 x 32, or for each 32 of a row in Engram's
tables, or E2M1 with one for each 32. They decode to BF16 without loss.
"""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.model.v41.config import parse_config
from flagrelease.model.v41.inventory import inventory
from flagrelease.model.v41.synthetic import tiny_config

ROWS, IMAGE, NOISE = 512, 500, 3  # the vocabulary, and two ids of the config
SPECIAL = [
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜place▁holder▁no▁0｜>", "<｜User｜>",
    "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜", "<｜System｜>", "<｜latest_reminder｜>",
]  # fmt: skip
# that differ in what Engram's table of words ignores: case, accents, width, and the space around them
WORDS = [
    "the", "The", "THE", " the", " The", "the ", "caf\u00e9", "Caf\u00e9", "cafe", "cafe\u0301", " cafe", "\uff34he",
    "  ", " \n", "\n\n", "\t\t", "a b", "A  B", "a\nb", "\u00c5", "\u212b", "\ufb01", "fi", "FI",
]  # fmt: skip


def small_config(**changes: Any) -> dict[str, Any]:
    """`tiny_config` with the compressed vocabulary of this tokenizer, a limit that swiglu reaches, and few Sinkhorn
    iterations, as in the small V4. `changes` are of `text_config`."""
    words = {"engram_compressed_vocab_size": compressed_size(), "swiglu_limit": 1.5, "hc_sinkhorn_iters": 3}
    return tiny_config(**words | changes)


def write_small(folder: Path, config: dict[str, Any] | None = None, seed: int = 0, files: int = 3) -> Path:
    """A native release with its tokenizer; 7 MB."""
    config = config or small_config()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = native_tensors(config, seed)
    names = sorted(tensors)
    weight_map = {}
    for n in range(files):
        file = f"model-{n + 1:05}-of-{files:05}.safetensors"
        save_file({name: tensors[name] for name in names[n::files]}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names[n::files], file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


# --- the tokenizer


def vocabulary() -> list[str]:
    """Every row's token in the alphabet of bytes: the special ones, 256 bytes, words, and unused ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [spelled.pre_tokenize_str(word)[0][0] for word in WORDS]
    known = [*SPECIAL, *alphabet, *words]
    tokens = known + [f"<unused-{n}>" for n in range(ROWS - len(known))]
    tokens[IMAGE] = "<｜deepseek_image｜>"
    return tokens


def write_tokenizer(folder: Path) -> None:
    tokens = vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in [*SPECIAL, tokens[IMAGE]]]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))


def compressed_size() -> int:
    """How many words are left when Engram counts those as one that differ in case, accents or space (facts C.6)."""
    byte_of = {token: byte for byte, token in enumerate(_bytes_in_order())}
    return len({_key(token, byte_of) for token in vocabulary()})


def _bytes_in_order() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself if it is printable Latin-1."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


def _key(token: str, byte_of: dict[str, int]) -> str:
    whole = all(c in byte_of for c in token)
    text = bytes(byte_of[c] for c in token).decode("utf-8", "replace") if whole else token
    if "\ufffd" in text:
        return token
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn").lower()
    for space in "\t\r\n":
        plain = plain.replace(space, " ")
    while "  " in plain:
        plain = plain.replace("  ", " ")
    return plain if plain == " " else plain.strip() or text


# --- the weights


def native_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Every stored tensor, scales included."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for spec in inventory(parse_config(config, "config.json")).values():
        if spec.storage in (Storage.LINEAR, Storage.EXPERT, Storage.TABLE):
            scale = spec.name.removesuffix("weight") + "scale"
            tensors[spec.name], tensors[scale] = _coded(rng, spec)
        else:
            values = torch.from_numpy(_plain(rng, spec.name, spec.shape).astype(np.float32))
            tensors[spec.name] = values if spec.storage is Storage.F32 else values.bfloat16()
    return tensors


def _plain(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    key = name.removesuffix(".weight").rpartition(".")[2]
    if "norm" in key or key.endswith(("_scale", "q_weight", "k_weight")):
        return rng.uniform(0.5, 1.5, shape)
    if key in ("embed", "attn_sink") or key.endswith("_base") or key.startswith("image_"):
        return rng.normal(0, 1, shape)
    if key in ("bias", "bias_vl"):
        return rng.normal(0, 0.3, shape)
    gain = {"head": 3.0, "proj": 0.1 if "confidence_head" in name else 1.0}.get(
        key, 1.0
    )  # no norm made its input small
    return rng.normal(0, gain / math.sqrt(shape[-1]), shape)


def _coded(rng: np.random.Generator, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    rows, columns = spec.shape
    # a table's rows are read as they are, not summed over their columns; experts come out small behind swiglu
    spread = 1.0 if spec.storage is Storage.TABLE else (2.0 if ".ffn." in spec.name else 1.0) / math.sqrt(columns)
    tall = 32 if spec.storage is Storage.LINEAR else 1
    blocks = -(-rows // tall), -(-columns // 32)
    if spec.storage is Storage.EXPERT:
        raw = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        codes = torch.from_numpy(
            (raw[:, 0::2] | (raw[:, 1::2] << 4)).view(np.int8)
        )  # the even column is the low nibble
        usual = 3.0
    else:
        eights = rng.normal(0, 8, (rows, columns)).astype(ml_dtypes.float8_e4m3fn)
        codes = torch.from_numpy(eights.view(np.uint8)).view(torch.float8_e4m3fn)
        usual = 8.0
    exponents = round(math.log2(spread / usual)) + rng.integers(-1, 2, blocks)
    return codes, torch.from_numpy((exponents + 127).astype(np.uint8)).view(torch.float8_e8m0fnu)

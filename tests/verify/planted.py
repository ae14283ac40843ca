"""The planted defects: name, step, how, checks that fail, a finding's text, release.

Steps of making a release: `whole`: before tensors are cut, so manifest, ranks and files agree on the wrong bytes (a bug
of the converter); `ranks`: after cutting, so the manifest's digests are right and the ranks' files wrong; `folder`:
before files are recorded; `manifest`: in the manifest alone; `after`: in the finished release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import planters as p
import torch
from planters import EXPERT, NORM, SINK, SQUARE, WO_A, WQ_B


@dataclass(frozen=True)
class Defect:
    """`fails`: the checks that fail, no others. `says`: one of them, and text of a finding of it. `release`:
    dtype-layout, with the o-group mode or the number of parts where that matters."""

    name: str
    step: str
    plant: Callable[[Any], None]
    fails: str
    says: str
    release: str = "bf16-hf"


HF1 = "model-00001-of-00002.safetensors"
W2 = "layers.0.ffn.experts.0.w2.weight"
W3 = EXPERT.replace("w1", "w3")
FP8_CONFIG = {"quant_method": "fp8", "weight_block_size": [128, 128]}
BF16_RULE = "is not code times scale of the source, rounded once to BF16"

DEFECTS = [
    Defect("nibbles swapped before decoding", "whole", p.swap_pairs, "source", f"source: {EXPERT}"),
    Defect(
        "nibbles swapped in a copy",
        "whole",
        p.swap_nibbles,
        "tensors source",
        "source: is not the source's bytes",
        "native-mp2",
    ),
    Defect(
        "a neighbouring block's scale, FP8",
        "whole",
        p.rescale("layers.1.attn.wq_a", lambda s: s.roll(1, 1)),
        "source",
        "source: layers.1.attn.wq_a.weight",
    ),
    Defect(
        "a neighbouring group's scale, FP4",
        "whole",
        p.rescale(EXPERT, lambda s: s.roll(1, 1)),
        "source",
        f"source: {BF16_RULE}",
        "bf16-mp4",
    ),
    Defect("scale transposed", "whole", p.rescale(SQUARE, lambda s: s.T), "source", f"source: {SQUARE}"),
    Defect("scale off by one", "whole", p.rescale(EXPERT, lambda s: s + 1), "source", f"source: {BF16_RULE}"),
    Defect("w1 and w3 swapped", "whole", p.swap_names(EXPERT, W3), "source", f"source: {EXPERT}"),
    Defect(
        "w1 and w3 swapped in a copy",
        "whole",
        p.swap_names(EXPERT, W3),
        "tensors source",
        "tensors: another digest than its source's",
        "native-hf",
    ),
    Defect(
        "w1 and w3 swapped in a repack",
        "whole",
        p.swap_names(EXPERT, W3),
        "source",
        "source: is not the FP8 of the source's FP4",
        "fp8-hf",
    ),
    Defect(
        "an expert duplicated", "whole", p.duplicate_expert, "source", "source: layers.1.ffn.experts.4.w2", "bf16-mp4"
    ),
    Defect("-0.0 turned into +0.0", "whole", p.positive_zeros, "source", "source: is 0x0000, must be 0x8000"),
    Defect(
        "F8_E8M0 copied as numbers", "whole", p.numeric_e8m0, "tensors source", f"source: {EXPERT}.scale", "native-mp4"
    ),
    Defect(
        "scale of a repack off by one",
        "whole",
        p.change_bytes(f"{EXPERT}.scale", lambda s: s + 1),
        "source",
        f"source: {EXPERT}.scale",
        "fp8-mp4",
    ),
    Defect(
        "one code of a repack off by one",
        "whole",
        p.flip_code(f"{EXPERT}.weight", 300),
        "source",
        "source: row 1 column 44",
        "fp8-hf",
    ),
    Defect(
        "rank pieces swapped before the digest", "whole", p.roll_rows(WQ_B, 2), "source", f"source: {WQ_B}", "bf16-mp2"
    ),
    Defect(
        "o-groups rotated before the digest",
        "whole",
        p.roll_rows(WO_A, 4),
        "source",
        f"source: {WO_A}",
        "native-mp8-shared",
    ),
    Defect("ranks swapped", "ranks", p.swap_ranks, "structure", "structure: does not belong to rank 0", "bf16-mp4"),
    Defect(
        "two ranks' pieces of wq_b swapped",
        "ranks",
        p.swap_pieces(WQ_B, 0, 1),
        "tensors source",
        f"tensors: {WQ_B}",
        "bf16-mp4",
    ),
    Defect(
        "two ranks' attention sinks swapped",
        "ranks",
        p.swap_pieces(SINK, 2, 3),
        "tensors source",
        "source: row 4 column 0",
        "native-mp4",
    ),
    Defect(
        "a wrong o-group piece on one rank",
        "ranks",
        p.take_piece(WO_A, 3, 4),
        "replicas",
        "replicas: model3-mp8.safetensors",
        "bf16-mp8-shared",
    ),
    Defect(
        "a wrong o-group piece, o-groups split",
        "ranks",
        p.swap_pieces(WO_A, 2, 3),
        "tensors source",
        f"source: {WO_A}",
        "bf16-mp8-split",
    ),
    Defect(
        "a replicated tensor differs on one rank",
        "ranks",
        p.flip_on(2, NORM),
        "replicas",
        "replicas: model2-mp4-part",
        "bf16-mp4-parts3",
    ),
    Defect(
        "a replicated tensor differs on rank 0",
        "ranks",
        p.flip_on(0, NORM),
        "replicas tensors source",
        f"source: {NORM}",
        "bf16-mp4",
    ),
    Defect(
        "an expert's matrix on another rank",
        "ranks",
        p.move_expert,
        "structure",
        "structure: missing on rank 0",
        "fp8-mp4",
    ),
    Defect("a tensor dropped", "ranks", p.drop(0, f"{EXPERT}.weight"), "structure", f"structure: {EXPERT}.weight"),
    Defect(
        "a tensor dropped on one rank",
        "ranks",
        p.drop(3, NORM),
        "structure",
        "structure: missing on rank 3",
        "bf16-mp4",
    ),
    Defect("a scale left behind", "ranks", p.leave_scale, "structure", f"structure: {EXPERT}.scale"),
    Defect(
        "wo_a left quantised",
        "ranks",
        p.leave_wo_a_quantised,
        "structure",
        "structure: is F8_E4M3 [256, 256], must be BF16 [256, 256]",
        "native-mp2",
    ),
    Defect(
        "experts of an mp release as I8",
        "ranks",
        p.exchange(0, W2, lambda t: t.view(torch.int8)),
        "structure",
        "structure: is I8 [256, 64], must be F4 [256, 128]",
        "native-mp2",
    ),
    Defect(
        "F8_E8M0 written as U8",
        "ranks",
        p.exchange(0, f"{EXPERT}.scale", lambda t: t.view(torch.uint8)),
        "structure",
        "structure: is U8",
        "native-hf",
    ),
    Defect(
        "a weight transposed",
        "ranks",
        p.exchange(0, f"{EXPERT}.weight", lambda t: t.T),
        "structure",
        "structure: is BF16 [256, 128], must be BF16 [128, 256]",
    ),
    Defect(
        "a norm widened to F32",
        "ranks",
        p.exchange(0, NORM, lambda t: t.float()),
        "structure",
        "structure: is F32 [256], must be BF16 [256]",
    ),
    Defect(
        "quantization_config left behind",
        "folder",
        p.set_in("config.json", "quantization_config", value=FP8_CONFIG),
        "config",
        "config: has quantization_config, but no weight is quantised",
    ),
    Defect(
        "expert_dtype left behind",
        "folder",
        p.set_in("config.json", "expert_dtype", value="fp4"),
        "config",
        "config: expert_dtype",
    ),
    Defect(
        "expert_dtype of an FP8 release says fp4",
        "folder",
        p.set_in("config.json", "expert_dtype", value="fp4"),
        "config",
        "config: expert_dtype is 'fp4' in a release of fp8",
        "fp8-hf",
    ),
    Defect(
        "inference/config.json still says fp8",
        "folder",
        p.set_in("inference/config.json", "dtype", value="fp8"),
        "config",
        "config: dtype is 'fp8', config.json makes it 'bf16'",
    ),
    Defect(
        "a number of the model changed",
        "folder",
        p.set_in("config.json", "rope_theta", value=50000),
        "config",
        "config: rope_theta is 50000, the source says 10000",
    ),
    Defect(
        "inference/config.json of another model",
        "folder",
        p.set_in("inference/config.json", "rope_factor", value=40),
        "config",
        "config: rope_factor is 40",
    ),
    Defect(
        "stale total_size",
        "folder",
        p.edit("model.safetensors.index.json", p.add_to_total),
        "structure",
        "structure: total_size",
    ),
    Defect(
        "the index names wrong files",
        "folder",
        p.edit("model.safetensors.index.json", p.misplace),
        "structure",
        "structure: embed.weight",
    ),
    Defect(
        "a file not carried over",
        "folder",
        p.remove("encoding/encoding_dsv4.py"),
        "companions",
        "companions: encoding/encoding_dsv4.py",
    ),
    Defect(
        "a carried file edited", "folder", p.write("tokenizer.json", "{}"), "companions", "companions: tokenizer.json"
    ),
    Defect(
        "more ranks recorded than there are",
        "manifest",
        p.set_key("target", "mp", value=4),
        "structure",
        "structure: 2 safetensors files cannot be the 4 ranks",
        "bf16-mp2",
    ),
    Defect(
        "inference/config.json not an object",
        "folder",
        p.write("inference/config.json", "[]"),
        "config",
        "config: a JSON object is expected",
    ),
    Defect(
        "experts of a native release said to be fp8",
        "folder",
        p.set_in("config.json", "expert_dtype", value="fp8"),
        "config structure",
        "config: expert_dtype is 'fp8', the source says 'fp4'",
        "native-hf",
    ),
    Defect(
        "block size of a native release changed",
        "folder",
        p.set_in("config.json", "quantization_config", value=FP8_CONFIG | {"weight_block_size": [64, 128]}),
        "config structure",
        "config: weight_block_size is [64, 128], the source's quantization_config says [128, 128]",
        "native-hf",
    ),
    Defect("a digest of the manifest is wrong", "manifest", p.wrong_digest, "tensors", f"tensors: {EXPERT}"),
    Defect(
        "o-groups recorded the other way",
        "manifest",
        p.set_key("target", "o_groups", value="split"),
        "structure",
        f"structure: {WO_A}",
        "bf16-mp8-shared",
    ),
    Defect(
        "o-groups not recorded",
        "manifest",
        p.set_key("target", "o_groups", value=None),
        "structure",
        "structure: target.o_groups",
        "bf16-mp8-shared",
    ),
    Defect(
        "a file without a record",
        "manifest",
        p.drop_record,
        "files companions",
        "files: tokenizer.json: not in the manifest",
    ),
    Defect(
        "element counts untrue",
        "manifest",
        p.set_key("elements", "exact", value=1),
        "source",
        "source: elements.exact is 1",
    ),
    Defect(
        "a loss not recorded",
        "manifest",
        p.set_key("inexact", "norm.weight", value=2),
        "source",
        "source: inexact is 2, the second decoder counts 0",
    ),
    Defect(
        "another source recorded",
        "manifest",
        p.set_key("source", "identity", value="0" * 64),
        "source",
        "source: is not the checkpoint that the manifest records",
    ),
    Defect("source.tensors incomplete", "manifest", p.drop_source_tensor, "structure", "structure: norm.weight"),
    Defect("a byte flipped", "after", p.flip_byte, "files tensors source", f"files: {HF1}"),
    Defect("a file truncated", "after", p.truncate(HF1), "files structure", "structure: truncated"),
    Defect(
        "a rank's file truncated",
        "after",
        p.truncate("model1-mp2.safetensors"),
        "files structure",
        "structure: truncated",
        "bf16-mp2",
    ),
    Defect("an extra file", "after", p.write("notes.txt", "x"), "files", "files: notes.txt: not in the manifest"),
    Defect(
        "an unfinished file",
        "after",
        p.write("model-00003.partial", "x"),
        "files",
        "files: model-00003.partial: not in the manifest",
    ),
    Defect(
        "a part of a rank missing",
        "after",
        p.remove("model1-mp2-part1.safetensors"),
        "files structure",
        "structure: rank 1 of mp2 has parts [2]",
        "native-mp2-parts2",
    ),
    Defect(
        "a pickle added",
        "after",
        p.write("pytorch_model.bin", "x"),
        "files structure",
        "files: a pickle file can run code",
    ),
    Defect("a file made executable", "after", p.chmod, "files", "files: executable (mode 755)"),
    Defect("a file replaced by a link", "after", p.link, "files", "files: not a regular file"),
    Defect(
        "a tensor dropped from file and index",
        "after",
        p.drop_from_file_and_index,
        "structure",
        "structure: missing on rank 0",
    ),
]

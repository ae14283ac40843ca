"""config.json: read strictly, mapped to DeepSeek's ModelArgs, and consistent with the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagrelease.errors import CheckpointError
from flagrelease.model.v4.config import native_arguments, parse_config, read_config
from flagrelease.model.v4.synthetic import tiny_config

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"


def test_the_native_arguments_of_the_real_flash_are_the_published_ones() -> None:
    published = json.loads((CONFIGS / "flash-inference.json").read_text())
    config, _ = read_config(CONFIGS / "flash.json")
    numeric = {"dtype": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4"}
    assert native_arguments(config) | numeric == published


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "deepseek_v3"}, "model_type is 'deepseek_v3'"),
        ({"hidden_size": "256"}, "hidden_size: .*valid integer"),
        ({"hidden_size": True}, "hidden_size: .*valid integer"),
        ({"hidden_size": 0}, "hidden_size: .*greater than 0"),
        ({"rope_theta": float("nan")}, "rope_theta: .*finite"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"o_groups": 3}, "o_groups 3 does not divide num_attention_heads 16"),
        ({"compress_ratios": [0, 4, 128]}, "compress_ratios has 3 entries; 3 layers and 1 MTP stages need 4"),
        ({"compress_ratios": [0, 4, 2, 0]}, r"compress_ratios holds \[2\]"),
        ({"dspark_block_size": 5}, "a DSpark release has all of"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}}, "weight_block_size.0"),
        ({"quantization_config": {"quant_method": "awq", "weight_block_size": [128, 128]}}, "quant_method"),
        ({"expert_dtype": "int8"}, "expert_dtype"),
    ],
)
def test_what_a_config_may_not_say(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        parse_config(tiny_config(**change), "folder/config.json")
    assert "folder/config.json" in str(caught.value)


@pytest.mark.parametrize("key", sorted(set(tiny_config()) - {"expert_dtype", "quantization_config"} - {
    "architectures", "num_key_value_heads", "tie_word_embeddings", "torch_dtype",
}))  # fmt: skip
def test_a_missing_key_is_refused(key: str) -> None:
    config = tiny_config()
    del config[key]
    with pytest.raises(CheckpointError, match=key):
        parse_config(config, "config.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object is expected"),
        ('{"model_type": "a", "model_type": "b"}', "'model_type' appears twice"),
        ('{"rope_theta": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff", "not valid JSON"),
    ],
)
def test_what_is_no_config(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=said):
        read_config(tmp_path / "config.json")

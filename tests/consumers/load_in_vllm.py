"""Loads a release through vLLM's own DeepSeek-V4, on a CPU, and compares what arrived with the source. Not a test.

Run by `test_vllm.py` with the Python of the consumers' environment: `load_in_vllm.py RELEASE SOURCE [draft]` prints one
JSON document, of the model or of its MTP draft. vLLM's model for NVIDIA is built whole, with its own modules, methods
of quantisation, parameters, mapper and load_weights. Replaced are only the choice of kernels, which would ask for a
GPU, and the CUDA streams and events.

The weights that a parameter stands for (codes times scales, as its kernels multiply them) are compared in float64 with
the source's, which are decoded here from their definition. Nothing of flagrelease is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch


class _NoDevice:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass


torch.cuda.Stream = torch.cuda.Event = _NoDevice  # type: ignore[assignment, misc]

# ruff: noqa: E402 - what vLLM finds of CUDA is replaced before it looks
import vllm.platforms
from safetensors import safe_open
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import DeviceCapability

vllm.platforms._current_platform = CpuPlatform()
CpuPlatform.get_device_capability = classmethod(lambda *_, **__: DeviceCapability(9, 0))  # a Hopper's

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
from vllm.model_executor.layers.quantization import fp8
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w8a8_fp8,
    compressed_tensors_moe_w8a8_int8,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    compressed_tensors_w8a8_fp8,
    compressed_tensors_w8a8_int8,
)
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.models.deepseek_v4.nvidia.model import DeepseekV4ForCausalLM
from vllm.models.deepseek_v4.nvidia.mtp import DeepSeekV4MTP

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)


def build(release: Path, draft: bool) -> tuple[torch.nn.Module, VllmConfig]:
    config = EngineArgs(
        model=str(release), skip_tokenizer_init=True, enforce_eager=True, max_model_len=256,
        speculative_config={"method": "mtp", "num_speculative_tokens": 1} if draft else None,
    ).create_engine_config()  # fmt: skip
    for module in (fp8, compressed_tensors_w8a8_fp8, compressed_tensors_w8a8_int8):
        for name in ("init_fp8_linear_kernel", "init_int8_linear_kernel"):
            if hasattr(module, name):
                setattr(module, name, lambda *_, **__: MagicMock())
    compressed_tensors_moe_w8a8_int8.select_int8_moe_backend = lambda *_, **__: (Int8MoeBackend.TRITON, MagicMock())
    compressed_tensors_moe_w8a8_fp8.select_fp8_moe_backend = lambda *_, **__: (Fp8MoeBackend.TRITON, MagicMock())
    with set_current_vllm_config(config):
        where = f"file://{release.parent / (release.name + '.rendezvous')}"
        parallel_state.init_distributed_environment(1, 0, where, 0, backend="gloo")
        parallel_state.initialize_model_parallel(1, 1)
        torch.set_default_dtype(torch.bfloat16)
        model = initialize_model(config, model_class=DeepseekV4ForCausalLM)
        # The draft shares the model's quantisation, in which the model's class has renamed the modules
        return (initialize_model(config, model_class=DeepSeekV4MTP) if draft else model), config


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_tensor(name)


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Values in float64, by the definition of the dtype."""
    if tensor.dtype == torch.float8_e8m0fnu:
        return torch.exp2(tensor.view(torch.uint8).to(torch.float64) - 127)
    return tensor.to(torch.float32 if tensor.dtype == torch.float8_e4m3fn else tensor.dtype).to(torch.float64)


def unpacked(codes: torch.Tensor) -> torch.Tensor:
    bits = codes.view(torch.uint8).to(torch.int64)
    return FP4[torch.stack([bits & 15, bits >> 4], dim=-1).flatten(-2)]


def times(codes: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Codes times the scale of their block; the shapes tell the blocks."""
    if scales is None:
        return codes
    rows, columns = codes.shape
    height, width = -(-rows // scales.shape[0]), -(-columns // scales.shape[1])
    height, width = (128 if 1 < height < 128 else height), (width if width in (16, 32, columns) else 128)
    spread = scales.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    return codes * spread


def source_weight(source: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    tensor, scale = source[name], source.get(name.removesuffix(".weight") + ".scale")
    if scale is None:
        return numbers(tensor)
    return times(unpacked(tensor) if tensor.dtype == torch.int8 else numbers(tensor), numbers(scale))


class Arrived:
    """What the parameters stand for, by the names of the source."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = {name: value.detach() for name, value in model.named_parameters()}
        self.asked: set[str] = set()

    def _parameter(self, name: str) -> torch.Tensor | None:
        if name in self.parameters:
            self.asked.add(name)
        return self.parameters.get(name)

    def _weight(self, module: str, joint: str = ".", part: Any = slice(None)) -> torch.Tensor:
        weight = self._parameter(f"{module}{joint}weight")
        assert weight is not None, module
        scale = self._parameter(f"{module}{joint}weight_scale_inv")
        if scale is None:
            scale = self._parameter(f"{module}{joint}weight_scale")
        weight, scale = weight[part], None if scale is None else scale[part]
        if weight.dtype == torch.uint8:
            assert scale is not None
            return times(unpacked(weight), torch.exp2(scale.to(torch.float64) - 127))
        return times(numbers(weight), None if scale is None else numbers(scale))

    def _in_draft(self, name: str) -> str:
        stage, rest = name.removeprefix("model.mtp.").split(".", 1)
        layer = f"model.layers.{int(stage) + self.layers}"
        if rest == "norm.weight":
            return f"{layer}.shared_head.norm.weight"
        if rest.startswith(("e_proj", "h_proj", "enorm", "hnorm", "hc_head")):
            return f"{layer}.{rest}"
        return f"{layer}.mtp_block.{rest}"

    def of(self, name: str) -> torch.Tensor:
        name = {"head.weight": "lm_head.weight", "embed.weight": "model.embed_tokens.weight"}.get(name, f"model.{name}")
        if name.startswith("model.mtp."):
            name = self._in_draft(name)
        if ".ffn.experts." in name:
            layer, _, rest = name.partition(".experts.")
            number, which, _ = rest.split(".")
            module = f"{layer}.experts.routed_experts.{'w2' if which == 'w2' else 'w13'}"
            weight = self._weight(module, "_", int(number))
            half = weight.shape[0] // 2
            return weight if which == "w2" else weight[:half] if which == "w1" else weight[half:]
        for fused, parts in {
            "attn.fused_wqa_wkv": ("attn.wq_a", "attn.wkv"),
            "compressor.fused_wkv_wgate": ("compressor.wkv", "compressor.wgate"),
            "shared_experts.gate_up_proj": ("shared_experts.w1", "shared_experts.w3"),
        }.items():
            for number, part in enumerate(parts):
                if name.endswith(f".{part}.weight"):
                    return (
                        self._weight(name.removesuffix(f"{part}.weight") + fused).chunk(2)[number]
                        if ("wqa" not in fused)
                        else self._rows(name.removesuffix(f"{part}.weight") + fused, number)
                    )
        name = name.replace("shared_experts.w2", "shared_experts.down_proj")
        name = name.replace("gate.bias", "gate.e_score_correction_bias")
        if name.endswith(".weight") and f"{name}_scale" in self.parameters | {f"{name}_scale_inv": 0}:
            return self._weight(name.removesuffix(".weight"))
        if f"{name}_scale_inv" in self.parameters:
            return self._weight(name.removesuffix(".weight"))
        value = self._parameter(name)
        assert value is not None, name
        return numbers(value)

    def _rows(self, module: str, number: int) -> torch.Tensor:
        weight = self._weight(module)
        return weight[: self.first] if number == 0 else weight[self.first :]

    first = 0  # rows of wq_a in the module that joins it with wkv
    layers = 0  # of the model, behind which its draft is counted


def main(release: Path, source_folder: Path, draft: bool) -> dict[str, Any]:
    source = dict(tensors_of(source_folder))
    try:
        model, config = build(release, draft)
        initial = {name: value.detach().clone() for name, value in model.named_parameters()}
        with set_current_vllm_config(config):
            DefaultModelLoader(config.load_config).load_weights(model, config.model_config)
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is the answer
        return {"error": f"{type(error).__name__}: {error}"}
    arrived = Arrived(model)
    arrived.layers = config.model_config.hf_config.num_hidden_layers
    arrived.first = source["layers.0.attn.wq_a.weight"].shape[0]
    compared = {}
    for name in source:
        if name.startswith("mtp.") != draft or name.endswith(".scale"):
            continue
        expected, found = source_weight(source, name), arrived.of(name)
        found = found[: expected.shape[0]]  # sinks are padded to the heads of the kernel
        off = (found - expected).to(torch.float64)
        scale = expected.pow(2).mean().sqrt().item() or 1.0
        compared[name] = {
            "exact": bool((off == 0).all()),
            "exact_share": (off == 0).double().mean().item(),
            "rms": off.pow(2).mean().sqrt().item() / scale,
        }
    unchanged = [
        name
        for name, value in model.named_parameters()
        if torch.equal(value.detach().view(torch.uint8), initial[name].view(torch.uint8))
    ]
    endings = ("w2_weight_scale_inv", "w2_weight_scale")
    scale = next((name for name in arrived.parameters if name.endswith(endings)), None)
    return {
        "error": None,
        "parameters": len(arrived.parameters),
        "never_compared": sorted(set(arrived.parameters) - arrived.asked),
        "unchanged": unchanged,
        "tensors": compared,
        "an_expert_scale": numbers(arrived.parameters[scale])[0].flatten()[0].item() if scale else None,
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["draft"])))

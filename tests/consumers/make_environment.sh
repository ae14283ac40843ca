#!/usr/bin/env bash
# make_environment.sh FOLDER makes FOLDER/venv, in which the consumers of releases run on a CPU: vLLM's own loader of
# DeepSeek-V4, compressed-tensors, and the files of SGLang. It is never a dependency of the package; the tests in this folder ask for it by
# the path that they are given (pytest --consumers FOLDER). It takes minutes and 3 GB.
#
# vLLM is installed without its dependencies, since those bring CUDA; what its import of DeepSeek-V4 needs is listed
# here. It then warns that vllm._C is missing, which loading does not need.
# shellcheck source=tests/environments.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environments.sh"

# torch first and alone: a CPU build, where the package index offers one (PIP_EXTRA_INDEX_URL).
into venv torch==2.13.0
into venv \
  aiohttp anthropic blake3 cachetools cbor2 cloudpickle compressed-tensors==0.17.0 einops 'fastapi<0.137' ijson \
  jsonschema lark llguidance mistral_common msgspec numba==0.65.0 numpy==2.3.5 openai orjson oss-harmony \
  partial-json-parser pillow prometheus-fastapi-instrumentator prometheus_client protobuf psutil py-cpuinfo pybase64 \
  pydantic python-json-logger pyyaml pyzmq regex requests safetensors sentencepiece setproctitle tiktoken tokenizers \
  tqdm transformers==5.20.2 triton==3.9.0 uvloop watchfiles
into venv --no-deps \
  apache-tvm-ffi astor depyf dill interegular lm-format-enforcer==0.11.3 outlines_core==0.2.14 sglang==0.5.23 \
  vllm==0.33.0 xgrammar==0.2.8
"$folder/venv/bin/python" - <<'PYTHON'
import compressed_tensors, torch, vllm
from vllm.models.deepseek_v4.nvidia import model
print(f"vllm {vllm.__version__}, compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__}")
PYTHON

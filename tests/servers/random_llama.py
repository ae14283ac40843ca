"""random_llama.py TOKENIZER OUT writes a small Llama with random weights behind a tokenizer. Not a test.

vLLM on a CPU loads DeepSeek-V4 and cannot compute it: its kernels are Triton's. What it does with chats, tools, tokens
and log-probabilities does not depend on the model. Run with the Python of an environment that has transformers.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

tokenizer, out = map(Path, sys.argv[1:])
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=json.loads((tokenizer / "config.json").read_bytes())["vocab_size"], hidden_size=128,
    intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, initializer_range=0.3,
)  # fmt: skip
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(tokenizer / name, out / name)

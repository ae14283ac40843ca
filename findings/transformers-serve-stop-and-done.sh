#!/usr/bin/env bash
# transformers serve (5.23) leaves a `stop` string at the end of the text, ends its streams without OpenAI's
# `data: [DONE]`, answers `max_tokens` 0 with HTTP 500, and GET /v1/models too where the hub's cache has no folder yet.
# OpenAI's interface returns a text without the stop string, [DONE] at the end, and a list.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check install --quiet torch==2.13.0
"$folder/venv/bin/pip" --disable-pip-version-check install --quiet 'transformers[serving]==5.23.0' accelerate

cat >"$folder/model.py" <<'PYTHON'
import sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(["<s>", "</s>", *letters])}, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
fast.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
fast.save_pretrained(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, bos_token_id=0, eos_token_id=1, initializer_range=0.5)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PYTHON
"$folder/venv/bin/python" "$folder/model.py" "$folder/model"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/transformers" serve "$folder/model" --device cpu \
  --host 127.0.0.1 --port "$port" >"$folder/log" 2>&1 &
server=$!
cat >"$folder/ask.py" <<'PYTHON'
import json, sys, time, urllib.error, urllib.request

base, model = sys.argv[1:]


def send(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


for _ in range(240):
    try:
        send("/health")
        break
    except urllib.error.URLError:
        time.sleep(0.5)

chat = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 0}
text = json.loads(send("/v1/chat/completions", chat)[1])["choices"][0]["message"]["content"]
stop = text[2]
again = json.loads(send("/v1/chat/completions", {**chat, "stop": [stop]})[1])["choices"][0]["message"]["content"]
streamed = send("/v1/chat/completions", {**chat, "stream": True})[1]
status, none = send("/v1/models")[0], send("/v1/chat/completions", {**chat, "max_tokens": 0})[0]
print(f"without stop: {text!r}")
print(f"stop {stop!r}: {again!r}")
print(f"the stream has [DONE]: {'[DONE]' in streamed}")
print(f"GET /v1/models: {status}; max_tokens 0: {none}")
seen = again.endswith(stop), "[DONE]" in streamed, status, none
assert seen == (True, False, 500, 500), f"this is not what we saw: {seen}"
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "http://127.0.0.1:$port" "$folder/model"

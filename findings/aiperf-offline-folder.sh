#!/usr/bin/env bash
# aiperf 0.13.0, seen on 2026-11-30.
#
# A tokenizer that is a folder on this machine is loaded while the hub may be asked, and refused where HF_HUB_OFFLINE or
# TRANSFORMERS_OFFLINE is set, as on machines without a network: the offline way takes the path for the name of a repository.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check aiperf==0.13.0 2>pip.log || { cat pip.log >&2; exit 1; }
cat >asks.py <<'PYTHON'
import sys
from pathlib import Path

from aiperf.common.exceptions import TokenizerError
from aiperf.common.tokenizer import Tokenizer
from tokenizers import Tokenizer as Made, models, pre_tokenizers

folder = Path("tokenizer")
folder.mkdir(exist_ok=True)
made = Made(models.WordLevel({"Hello": 0, "world": 1, "?": 2}, unk_token="?"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
made.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
try:
    print(Tokenizer.from_pretrained(str(folder.resolve())).encode("Hello world"))
except TokenizerError as error:
    print(str(error).partition(": ")[2].partition(":")[0])
PYTHON
online=$(env/bin/python asks.py 2>stderr)
offline=$(HF_HUB_OFFLINE=1 env/bin/python asks.py 2>stderr)
echo "a folder as tokenizer: $online"
echo "the same with HF_HUB_OFFLINE=1: $offline"
test "$online" = "[0, 1]"
test "$offline" = "HFValidationError"

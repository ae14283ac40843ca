#!/usr/bin/env bash
# tokenizers 0.23.3 (Python), seen on 2026-11-30.
#
# `Tokenizer.encode` keeps Python's interpreter lock for the whole text: while one thread encodes, no other thread runs,
# so a server that moves tokenising into a thread still stands still for one long prompt. `encode_batch` and
# `encode_batch_fast` with a list of one text let other threads run.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check tokenizers==0.23.3 2>pip.log || { cat pip.log >&2; exit 1; }
cat >lock.py <<'PYTHON'
import threading
import time

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

words = [f"word{n} and {n * n}" for n in range(2000)]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=2000, show_progress=False))
text = " ".join(words) * 60


def longest_pause(encode):
    """The longest time that a thread which only sleeps a millisecond stood still, as a share of the encoding."""
    pauses, done = [], threading.Event()

    def tick():
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    time.sleep(0.05)
    begun = time.perf_counter()
    encode()
    took = time.perf_counter() - begun
    done.set()
    ticking.join()
    return max(pauses) / took


for name, encode in (
    ("encode", lambda: tokenizer.encode(text)),
    ("encode_batch", lambda: tokenizer.encode_batch([text])),
    ("encode_batch_fast", lambda: tokenizer.encode_batch_fast([text])),
):
    share = longest_pause(encode)
    print(f"{name}: other threads {'stand still for all of it' if share > 0.8 else 'run' if share < 0.5 else share}")
PYTHON
env/bin/python lock.py | tee seen
diff - seen <<'EXPECTED'
encode: other threads stand still for all of it
encode_batch: other threads run
encode_batch_fast: other threads run
EXPECTED

#!/usr/bin/env bash
# deepseek-recipe 0.2.0 (DeepSeek's own encoder, from the package index), seen on 2026-12-01.
#
# A history may hold reminders (latest_reminder) beside each other. The package's encoding of V4 shows all of them to the
# model; its encoding of V4.1 shows the first and leaves out the others without a word, though they are the newer ones.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check deepseek-recipe==0.2.0 2>pip.log || { cat pip.log >&2; exit 1; }
cat >reminders.py <<'PYTHON'
import re

import deepseek_recipe as recipe

said = [recipe.UserMessage("go"), *(recipe.LatestReminderMessage(f"it is {hour}") for hour in ("eight", "nine", "ten"))]
for encoding in (recipe.DeepseekV4Encoding(), recipe.DeepseekV41Encoding()):
    prompt = encoding.render_conversation(recipe.Conversation(said, thinking_mode=False)).prompt
    print(type(encoding).__name__, "shows", re.findall(r"it is (\w+)", prompt))
PYTHON
env/bin/python reminders.py | tee seen
diff - seen <<'EXPECTED'
DeepseekV4Encoding shows ['eight', 'nine', 'ten']
DeepseekV41Encoding shows ['eight']
EXPECTED

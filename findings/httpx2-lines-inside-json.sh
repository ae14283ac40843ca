#!/usr/bin/env bash
# httpx2 2.16.2, seen on 2026-11-30.
#
# Response.iter_lines and aiter_lines split where str.splitlines does, which includes U+2028, U+2029 and U+0085. JSON may
# hold these characters unescaped, and server-sent events end their lines at CR and LF only, so a client that reads a
# stream of answers by iter_lines cuts a valid event in two and cannot parse either half.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check httpx2==2.16.2 2>pip.log || { cat pip.log >&2; exit 1; }
env/bin/python >seen <<'PYTHON'
import json

import httpx2

event = "data: " + json.dumps({"text": "one\u2028two"}, ensure_ascii=False) + "\n\n"
response = httpx2.Response(200, content=event.encode(), headers={"content-type": "text/event-stream; charset=utf-8"})
for line in response.iter_lines():
    print(ascii(line))
PYTHON
cat seen
diff - seen <<'EXPECTED'
'data: {"text": "one'
'two"}'
''
EXPECTED

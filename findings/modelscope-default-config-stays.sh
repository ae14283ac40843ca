#!/usr/bin/env bash
# modelscope_hub 0.5.1, seen on 2026-11-30.
#
# The first HubApi() of a process reads MODELSCOPE_ENDPOINT and keeps what it found as the default configuration of the whole
# process. A second HubApi(), made after the variable was changed, still asks the first hub. HubApi(endpoint=...) asks the
# hub that it is given, and the client after it asks the first one again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HOME="$work"
unset MODELSCOPE_ENDPOINT MODELSCOPE_DOMAIN MODELSCOPE_HOME MODELSCOPE_API_TOKEN
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check modelscope_hub==0.5.1 2>pip.log || { cat pip.log >&2; exit 1; }
env/bin/python >seen <<'PYTHON'
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from modelscope_hub import HubApi, HubError

asked = []


def hub(name):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(name)
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def ask(words, api):
    asked.clear()
    try:
        api.get_repo("o/m", "model")
    except HubError:
        pass
    print(f"{words}: asks {', '.join(sorted(set(asked)))}")


first, second, third = hub("the first hub"), hub("the second hub"), hub("the third hub")
os.environ["MODELSCOPE_ENDPOINT"] = first
ask("the variable names the first hub", HubApi())
os.environ["MODELSCOPE_ENDPOINT"] = second
ask("the variable names the second hub", HubApi())
ask("the argument names the third hub", HubApi(endpoint=third))
ask("the variable names the second hub", HubApi())
PYTHON
cat seen
diff - seen <<'EXPECTED'
the variable names the first hub: asks the first hub
the variable names the second hub: asks the first hub
the argument names the third hub: asks the third hub
the variable names the second hub: asks the first hub
EXPECTED

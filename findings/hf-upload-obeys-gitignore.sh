#!/usr/bin/env bash
# huggingface_hub 2.4.0, seen on 2026-11-30.
#
# upload_folder leaves out the files that a .gitignore in the folder names: the hub says so in its reply to "preupload", the
# client drops the files, commits the rest, and reports success. Its log names them at debug level and counts them at info
# level, and by default it shows neither, so a model whose .gitignore names *.bin is published without its weights. The
# stand-in answers as the hub does.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HOME="$work" HF_HOME="$work/hf"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check huggingface_hub==2.4.0 2>pip.log || { cat pip.log >&2; exit 1; }
env/bin/python >seen <<'PYTHON'
import contextlib
import io
import json
import logging
import pathlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub

folder = pathlib.Path("model")
folder.mkdir()
(folder / ".gitignore").write_text("*.bin\n")
(folder / "weights.bin").write_bytes(b"\0" * 64)
(folder / "config.json").write_text("{}\n")
committed = []


class Hub(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else b""
        if not length and "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if "/preupload/" in self.path:
            asked = json.loads(body)
            print("sends .gitignore for the hub to apply:", repr(asked.get("gitIgnore")))
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": f["path"].endswith(".bin")}
                     for f in asked["files"]]
            self.reply({"files": files})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            committed.extend(line["value"]["path"] for line in lines if line["key"] == "file")
            self.reply({"commitUrl": "http://127.0.0.1/o/m/commit/" + "0" * 40, "commitOid": "0" * 40})
        else:
            self.reply({"url": "http://127.0.0.1/o/m", "id": "o/m", "type": "model"})

    def do_GET(self):
        self.reply({"id": "o/m", "sha": "0" * 40, "siblings": []})

    def reply(self, document):
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
said = io.StringIO()
logging.getLogger("huggingface_hub").addHandler(logging.StreamHandler(said))  # at its default level
api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.server_address[1]}", token="hf_" + "x" * 20)
with contextlib.redirect_stderr(said):
    result = api.upload_folder(repo_id="o/m", folder_path=folder)
print("in the folder:", sorted(path.name for path in folder.iterdir()))
print("committed:", sorted(committed))
print("returns:", type(result).__name__)
print("says:", repr(said.getvalue()))
PYTHON
cat seen
diff - seen <<'EXPECTED'
sends .gitignore for the hub to apply: '*.bin\n'
in the folder: ['.gitignore', 'config.json', 'weights.bin']
committed: ['.gitignore', 'config.json']
returns: CommitInfo
says: ''
EXPECTED

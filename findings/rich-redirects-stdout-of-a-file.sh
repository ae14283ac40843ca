#!/usr/bin/env bash
# rich 15.0.0, seen on 2026-11-30.
#
# While a Live display or a Progress is shown, rich sends what is printed on sys.stdout to the display's console
# (redirect_stdout=True by default). With Console(file=sys.stderr), as a progress bar of a command has it, that is the
# terminal: `command > answers.jsonl` leaves an empty file, and the answers are shown above the bar. rich asks whether its
# own console is a terminal, not whether stdout is one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check rich==15.0.0 2>pip.log || { cat pip.log >&2; exit 1; }
cat >command.py <<'PYTHON'
import sys

from rich.console import Console
from rich.progress import Progress

options = {} if sys.argv[1] == "default" else {"redirect_stdout": False}
with Progress(console=Console(file=sys.stderr), transient=True, **options) as bar:
    bar.add_task("answers", total=2)
    print("an answer")
PYTHON
cat >terminal.py <<'PYTHON'
"""Run the command with stdout in a file and stderr on a terminal, and say where its line went."""
import os
import pty
import subprocess
import sys

for choice in ("default", "redirect_stdout=False"):
    terminal, its_end = pty.openpty()
    with open("answers", "wb") as file:
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
        command = subprocess.Popen(
            [sys.executable, "command.py", choice], stdout=file, stderr=its_end, env=environment
        )
    os.close(its_end)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # Linux says so that nobody holds the other end any more
        pass
    assert command.wait() == 0
    with open("answers", "rb") as file:
        written = file.read()
    print(f"{choice}: in the file {written!r}, on the terminal: {'yes' if b'an answer' in shown else 'no'}")
PYTHON
env/bin/python terminal.py >seen
cat seen
diff - seen <<'EXPECTED'
default: in the file b'', on the terminal: yes
redirect_stdout=False: in the file b'an answer\n', on the terminal: no
EXPECTED

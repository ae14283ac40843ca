"""Run by itself: asks a hub's own client whether it has a token, and prints whether it looks like one; never the token.

Arguments: `hf` or `modelscope`, and `online` to ask the hub whose it is.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from typing import Any

_LOOKS = {"hf": r"hf_[A-Za-z0-9]{20,}", "modelscope": r"ms-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"}


def main(hub: str, online: bool) -> None:
    """Print `{"there", "looks"}`, then `{"user"}`; an error of the client ends the process with its traceback."""
    if hub == "hf":
        client: Any = import_module("huggingface_hub")
        token = client.get_token()
    else:
        client = import_module("modelscope_hub")
        config: Any = import_module("modelscope_hub.config")
        token = config.get_default_config().token
    print(json.dumps({"there": bool(token), "looks": re.fullmatch(_LOOKS[hub], token or "") is not None}), flush=True)
    if online and token:
        user = client.HfApi().whoami()["name"] if hub == "hf" else client.HubApi().whoami().username
        print(json.dumps({"user": str(user)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] == ["online"])

"""Run by itself: asks ModelScope's client for a token, and prints whether it looks like one; never the token.

Arguments: what a token looks like, and `online` to ask the hub whose it is.
"""

from __future__ import annotations

import json
import re
import sys


def main(form: str, online: bool) -> None:
    """Print `{"there", "looks"}`, then `{"user"}`; an error of the client ends the process with its traceback."""
    import modelscope_hub
    from modelscope_hub.config import get_default_config

    token = get_default_config().token
    print(json.dumps({"there": bool(token), "looks": re.fullmatch(form, token or "") is not None}), flush=True)
    if online and token:
        print(json.dumps({"user": str(modelscope_hub.HubApi().whoami().username)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] == ["online"])

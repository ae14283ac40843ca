"""Names of the files that publishing writes beside a release. A release must leave these names free.

Conversion plans around them: a source that was downloaded from a hub may hold files with these names, and such a file
must not travel into the release, where it would stand in the way of the publication's own.
"""

from __future__ import annotations

import re

CARD_NAME = "README.md"  # the one name that a release may have too: the card takes the place of the source's README
REPORT_NAME = "report.json"
CLAIMS_NAME = "claims.json"  # what the card says, for programs
STATEMENT_NAME = "provenance.intoto.json"
BOM_NAME = "bom.cdx.json"
SIGNATURE_NAME = "model.sig"
NODE_SCRIPT = "run_node.sh"
CONTAINER_FILE = "Containerfile"
COMPOSE_FILE = "compose.yaml"
CONFIGURATION_NAME = "configuration.json"  # by which ModelScope shows a model

# Where `convert --disk` puts what nobody has validated: a branch that begins so, or a repository that ends so.
STAGING_BRANCH = "convert-"
STAGING_REPOSITORY = "-unvalidated"

# Names at the top of a publication, for any hub. The script for one node is named after the layout (run_mp8.sh).
WRITTEN_NAMES = frozenset(
    {
        CARD_NAME,
        REPORT_NAME,
        CLAIMS_NAME,
        STATEMENT_NAME,
        BOM_NAME,
        SIGNATURE_NAME,
        NODE_SCRIPT,
        CONTAINER_FILE,
        COMPOSE_FILE,
        CONFIGURATION_NAME,
    }
)
_ONE_NODE_SCRIPT = re.compile(r"run_(hf|mp[1-9][0-9]*)\.sh")
_WRITTEN_IN_ANY_CASE = frozenset(name.casefold() for name in WRITTEN_NAMES)


def is_written_by_publishing(path: str) -> bool:
    """Whether publishing writes a file with this path (relative to the release) on some hub or in a folder.

    Upper and lower case make no difference: `readme.md` would stand in the way of `README.md` on ModelScope and on
    some file systems. README.md itself is the only name that a release may hold as well, since the card replaces it.
    """
    path = path.casefold()
    return path in _WRITTEN_IN_ANY_CASE or _ONE_NODE_SCRIPT.fullmatch(path) is not None


def is_staged(repo: str, revision: str | None) -> bool:
    """Whether a place on a hub is one of `convert --disk`, and no publication."""
    return (revision or "").startswith(STAGING_BRANCH) or repo.endswith(STAGING_REPOSITORY)


def one_node_script(layout: str) -> str:
    """Name of the script that runs a release of `layout` (`hf`, `mp8`) on one node."""
    return f"run_{layout}.sh"

"""`parse_yaml`: the tables that are shipped with the package, read by libyaml where PyYAML was built with it."""

from __future__ import annotations

from typing import Any


def parse_yaml(text: str | bytes) -> Any:
    """The document. What users write is not read here: errors name lines as the parser in Python does."""
    import yaml

    # The chips and stacks take 0.2 s of a core with the loader in Python, and a tenth of it with the one in C.
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

"""Keeping secrets out of what people and logs see: whoever prints what a server or its client said redacts it first.

Tokens are read by the hubs' own clients, never by this package.
"""

from __future__ import annotations

import logging
import re

_HIDDEN = "[hidden]"
# The query of an address (presigned uploads carry their signature there), and what looks like a token or its header.
_PATTERNS = (
    re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)"),
    re.compile(r"(?<=\?)[^\s'\"<>)]*(?:[Ss]ignature|[Tt]oken|[Cc]redential|[Ee]xpires)[^\s'\"<>)]*"),
    re.compile(r"(?i)(?<=bearer )[^\s'\",]+"),
    re.compile(r"(?i)(?<=token=)[^\s'\",&]+"),
    re.compile(r"(?<=m_session_id=)[^\s'\";,]+"),
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),  # keys of servers, as OpenAI and those after it write them
    re.compile(r"\bms-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
)


def redact(text: str) -> str:
    """`text` without what may be a secret."""
    for pattern in _PATTERNS:
        text = pattern.sub(_HIDDEN, text)
    return text


class Redacting(logging.Filter):
    """Redacts records of the hubs' clients, which name presigned addresses when they try again."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; it is always kept."""
        record.msg, record.args = redact(record.getMessage()), ()
        record.exc_info, record.exc_text = None, None
        return True


def redact_logs_of(library: str) -> None:
    """Attach the filter to the handlers of a client's logger, once; a filter of a logger would miss its children."""
    for handler in logging.getLogger(library).handlers:
        if not any(isinstance(present, Redacting) for present in handler.filters):
            handler.addFilter(Redacting())

"""What headers ask for, what is redacted, and what is not touched."""

from __future__ import annotations

import logging

import pytest

from flagrelease.errors import NetworkError
from flagrelease.redaction import redact, redact_logs_of
from flagrelease.retry import Obstacle, Patience, seconds_asked


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"retry-after": "2", "ratelimit": '"api";r=0;t=55'}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_seconds_asked(headers: dict[str, str], seconds: float | None) -> None:
    assert seconds_asked(headers) == seconds


def test_waits_double_up_to_a_minute_and_end() -> None:
    waits: list[float] = []

    def fail() -> None:
        raise ConnectionError("reset")

    with pytest.raises(NetworkError, match="x: reset; tried 8 times"):
        Patience(sleep=waits.append).wait_out("x", fail, (OSError,), lambda error: Obstacle(str(error)))
    assert waits == [1, 2, 4, 8, 16, 32, 60]


def test_what_is_no_obstacle_comes_through_at_once() -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        Patience(sleep=lambda _: pytest.fail("waited")).wait_out("x", fail, (OSError,), lambda _: None)


@pytest.mark.parametrize(
    "text",
    [
        "PUT https://bucket/x?X-Amz-Signature=SECRET&partNumber=1 failed",
        "PUT https://bucket/x?partNumber=1&OSSAccessKeyId=k&Signature=SECRET failed",
        "PUT https://bucket/x?token=SECRET failed",
        "Authorization: Bearer SECRET, x",
        "Cookie: m_session_id=SECRET; path",
        "token hf_SECRETsecretSECRET is wrong",
        "key sk-SECRETsecretSECRET-12 is wrong",
        "https://user:SECRET@proxy:3128 refused",
    ],
)
def test_secrets_are_hidden_and_the_rest_stays(text: str) -> None:
    hidden = redact(text)
    assert "SECRET" not in hidden
    assert "[hidden]" in hidden
    assert hidden.split()[-1] == text.split()[-1]


def test_what_holds_no_secret_is_not_touched() -> None:
    text = "GET https://huggingface.co/api/models/a/b/tree/main?recursive=true&expand=false: HTTP 500"
    assert redact(text) == text


def test_logs_of_a_library_are_redacted_once() -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("a_hubs_client")
    logger.addHandler(Keep())
    for _ in range(2):
        redact_logs_of("a_hubs_client")
    assert len(logger.handlers[0].filters) == 1
    logging.getLogger("a_hubs_client.inner").warning("retry %s", "https://b/x?Signature=SECRET")
    assert lines == ["retry https://b/x?[hidden]"]

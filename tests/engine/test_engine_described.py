"""/openapi.json tells what the server does: refusals, streams, the model's name, and the values that are taken.

`tests/clients` runs schemathesis against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_service import NAME, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.text import Tokenizer


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return scripted_app(Tokenizer(folder)).openapi()


def test_refusals_have_the_form_of_their_interface(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            assert "422" not in responses  # FastAPI tells it of every body; nothing here answers so
            refusals = (
                {"401", "403", "404", "503"} if method == "get" else {"400", "401", "403", "404", "413", "429", "503"}
            )
            assert responses.keys() == {"200", *refusals}
            form = "AnthropicError" if path.startswith("/v1/messages") else "OpenAIError"
            for status in refusals:
                schema = responses[status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{form}"}
    assert {"OpenAIError", "AnthropicError"} <= document["components"]["schemas"].keys()


def test_streams_are_told(document: dict[str, Any]) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert content.keys() == {"application/json", "text/event-stream"}


def test_what_is_taken_is_told(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["ResponsesRequest"]["properties"]
    assert fields["model"]["enum"] == [NAME]
    assert fields["store"]["anyOf"] == [{"enum": [False], "title": "Store"}, {"type": "null"}]
    assert fields["previous_response_id"]["anyOf"][0]["enum"] == [None]
    assert {"type": "null"} in fields["temperature"]["anyOf"]
    assert document["components"]["schemas"]["ResponsesRequest"]["additionalProperties"] is False

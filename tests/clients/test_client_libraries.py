"""Client libraries against the server: OpenAI's, Anthropic's, langchain-openai, litellm, llm.

Each has a program `with_NAME.py` of its own beside this file, which runs in the clients' environment, asserts what it
gets, and prints the name of every check that passed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from client_runs import HERE, Run

pytestmark = pytest.mark.clients

CHECKS = {
    "openai": "models completions chats tools responses responses_with_tools reasoning refusals parse",
    "anthropic": "messages stops tools thinking refusals models constrained",
    "langchain": "chats tools responses structured",
    "litellm": "chats tools thinks responses messages",
    "llm": "prompts tools schemas",
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_client_library(name: str, model: str, scripted: str, run: Run, tmp_path: Path) -> None:
    settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LLM_USER_PATH": str(tmp_path / "llm")}
    said = run("clients", "python", HERE / f"with_{name}.py", model, scripted, **settings)
    assert [line for line in said.splitlines() if line in CHECKS[name].split()] == CHECKS[name].split()

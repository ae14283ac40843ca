"""What a monitor reads: the load of a service in Prometheus' text format."""

from __future__ import annotations

from flagrelease.engine.serve.service import Load


def exposition(load: Load) -> str:
    """The document of /metrics."""
    rows = (
        ("sequences_running", "gauge", "Sequences that have a row.", load.running),
        ("sequences_waiting", "gauge", "Sequences that wait for one.", load.waiting),
        ("requests_refused_total", "counter", "Requests refused because the queue was full.", load.refused),
        ("prompt_tokens_total", "counter", "Tokens of prompts read.", load.totals.prompt),
        ("cached_prompt_tokens_total", "counter", "Tokens of prompts that were read before.", load.totals.cached),
        ("generated_tokens_total", "counter", "Tokens generated.", load.totals.generated),
        ("drafted_tokens_total", "counter", "Tokens guessed by the draft stages.", load.totals.drafted),
        ("accepted_tokens_total", "counter", "Guesses that were the model's choice.", load.totals.accepted),
    )
    return "".join(
        f"# HELP flagrelease_{name} {text}\n# TYPE flagrelease_{name} {kind}\nflagrelease_{name} {value}\n"
        for name, kind, text, value in rows
    )

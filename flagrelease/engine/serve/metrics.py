"""What a monitor reads: the load of a service in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.engine.serve.service import Load

VERIFICATIONS, VERIFIED, ACCEPTED = "verifications_total", "verified_drafts_total", "accepted_drafts_total"
PREFIX = "flagrelease_"


def exposition(load: Load) -> str:
    """The document of /metrics."""
    totals, drafts = load.totals, load.totals.acceptance
    rows: tuple[tuple[str, str, str, int | Sequence[int]], ...] = (
        ("sequences_running", "gauge", "Sequences that have a row.", load.running),
        ("sequences_waiting", "gauge", "Sequences that wait for one.", load.waiting),
        ("requests_refused_total", "counter", "Requests refused because the queue was full.", load.refused),
        ("prompt_tokens_total", "counter", "Tokens of prompts read.", totals.prompt),
        ("cached_prompt_tokens_total", "counter", "Tokens of prompts that were read before.", totals.cached),
        ("generated_tokens_total", "counter", "Tokens generated.", totals.generated),
        ("drafted_tokens_total", "counter", "Tokens guessed by the draft stages that were verified.", totals.drafted),
        ("accepted_tokens_total", "counter", "Guesses that were the model's choice.", totals.accepted),
        (VERIFICATIONS, "counter", "Steps of a sequence that had been given drafts.", drafts.verifications),
        (VERIFIED, "counter", "Drafts verified, by place in their block, from 1.", drafts.verified),
        (ACCEPTED, "counter", "Drafts accepted, by place in their block, from 1.", drafts.accepted),
    )
    return "".join(
        f"# HELP {PREFIX}{name} {text}\n# TYPE {PREFIX}{name} {kind}\n{_samples(PREFIX + name, value)}"
        for name, kind, text, value in rows
    )


def _samples(name: str, value: int | Sequence[int]) -> str:
    """One value, or one for each place."""
    if isinstance(value, int):
        return f"{name} {value}\n"
    return "".join(f'{name}{{position="{place}"}} {count}\n' for place, count in enumerate(value, 1))

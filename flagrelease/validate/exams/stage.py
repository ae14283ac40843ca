"""The verdict on all benchmarks together."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.records.report import Benchmark, PartVerdict, Stage, together

_SAID: dict[PartVerdict, str] = {
    "pass": "Within the margin",
    "fail": "Worse by more than the margin",
    "cannot-tell": "Not decided",
    "not-informative": "Not informative",
}


def benchmarks_stage(benchmarks: Sequence[Benchmark], *, by_endpoint: bool) -> Stage:
    """The stage. `by_endpoint`: a server answered, of which nothing shows what weights it serves."""
    tasks = {verdict: [_named(each) for each in benchmarks if each.verdict == verdict] for verdict in _SAID}
    leaves_open = ["Tasks of another kind, and other questions than these."]
    if by_endpoint:
        leaves_open.append("That the endpoint served this very release: nothing in its answers shows its weights.")
    return Stage(
        name="benchmarks",
        verdict=together(each.verdict for each in benchmarks),
        detail="; ".join(f"{_SAID[verdict]}: {', '.join(named)}" for verdict, named in tasks.items() if named) + ".",
        proves=tuple(
            f"{each.task}: the score of this release is not lower than the native one by more than the margin, tested "
            f"over {each.n} questions with {each.repeats} answers to each."
            for each in benchmarks
            if each.verdict == "pass"
        ),
        leaves_open=tuple(leaves_open),
    )


def _named(benchmark: Benchmark) -> str:
    """The task, and why nothing was learnt of it where nothing was."""
    why = benchmark.figures.get("not_informative") if benchmark.verdict == "not-informative" else None
    return benchmark.task if why is None else f"{benchmark.task} ({why})"

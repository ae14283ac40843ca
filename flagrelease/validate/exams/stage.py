"""The verdict on all benchmarks together."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.records.report import Benchmark, PartVerdict, Stage, together
from flagrelease.validate.exams.marking.marking import CODE_NEEDS_SANDBOX

_SAID: dict[PartVerdict, str] = {
    "pass": "Within the margin",
    "fail": "Worse by more than the margin",
    "cannot-tell": "Not decided",
    "not-informative": "Not informative",
}


def benchmarks_stage(benchmarks: Sequence[Benchmark], *, by_endpoint: bool, left_out: Sequence[str] = ()) -> Stage:
    """The stage.

    Args:
        benchmarks: those that were asked.
        by_endpoint: a server answered, of which nothing shows what weights it serves.
        left_out: titles of those that were not, because nothing here runs code: without them there is no pass.
    """
    tasks = {verdict: [_named(each) for each in benchmarks if each.verdict == verdict] for verdict in _SAID}
    leaves_open = ["Tasks of another kind, and other questions than these."]
    if by_endpoint:
        leaves_open.append("That the endpoint served this very release: nothing in its answers shows its weights.")
    said = [f"{_SAID[verdict]}: {', '.join(named)}" for verdict, named in tasks.items() if named]
    said += [f"Not run: {', '.join(left_out)} ({CODE_NEEDS_SANDBOX})"] if left_out else []
    verdicts: list[PartVerdict] = [each.verdict for each in benchmarks]
    verdicts += ["cannot-tell"] if left_out else []
    return Stage(
        name="benchmarks",
        verdict=together(verdicts),
        detail="; ".join(said) + ".",
        proves=tuple(
            f"{each.task}: the score of this release is not lower than the native one by more than the margin, tested "
            f"over {each.n} questions with {each.repeats} answers to each."
            for each in benchmarks
            if each.verdict == "pass"
        ),
        leaves_open=tuple(leaves_open),
    )


def _named(benchmark: Benchmark) -> str:
    """The task, and why nothing was learnt of it where nothing was, or what stands between the test and a verdict."""
    obstacles = benchmark.figures.get("obstacles")
    first = obstacles[0] if isinstance(obstacles, list) and obstacles else None
    why = {"not-informative": benchmark.figures.get("not_informative"), "cannot-tell": first}.get(benchmark.verdict)
    return benchmark.task if why is None else f"{benchmark.task} ({why})"

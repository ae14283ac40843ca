"""The command that starts a serving stack on a release: the stack's usual launch and what the release needs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from flagrelease.chips.stacks import Launch


def cards_for(weight_bytes: int, memory_gib: int) -> int:
    """The fewest cards, a power of two, of whose memory 90 % holds so many bytes of weights.

    What is cut (heads, experts, vocabulary) is a power of two times something in every DeepSeek-V4.
    """
    needed = -(-weight_bytes // (memory_gib * 2**30 * 9 // 10))
    return 1 << (needed - 1).bit_length()


def cards_started(launch: Launch | None, fewest: int, flags: Iterable[str] = ()) -> int:
    """The cards on which the stack is started: the fewest that hold the release, or more if its usual launch has more.

    Args:
        launch, flags: as in `launch_lines`; None if no source says how the stack is started.
        fewest: cards that hold the release.
    """
    if launch is None:
        return fewest
    options = _options(launch, flags)
    return max(fewest, int(options.get(_parallel(launch), "=1").partition("=")[2]))


def launch_lines(
    launch: Launch,
    folder: str,
    model: str,
    cards: int,
    nodes: int,
    flags: Iterable[str] = (),
    environment: Iterable[str] = (),
) -> list[str]:
    """The command, one flag a line, lines joined by backslashes; on more cards than usual if the release is large.

    Args:
        launch: how the stack is started for DeepSeek-V4 of any form.
        folder: of the release, as the shell is to read it.
        model: the name under which it is served.
        cards, nodes: that the release takes.
        flags, environment: that this release needs; they go before the stack's usual ones of the same name.
    """
    variables = {word.partition("=")[0]: word for word in (*launch.environment, *environment)}
    options, parallel = _options(launch, flags), _parallel(launch)
    if _is_vllm(launch):
        first = f"{launch.command} {folder}"
        if nodes > 1:
            options["--distributed-executor-backend"] = "--distributed-executor-backend=ray"
    else:
        first = f"{launch.command} --model-path {folder}"
    options[parallel] = f"{parallel}={cards_started(launch, cards, flags)}"
    lines = [" ".join([*variables.values(), first, f"--served-model-name {shlex.quote(model)}"])]
    lines += [f"  {option}" for option in options.values()]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _options(launch: Launch, flags: Iterable[str]) -> dict[str, str]:
    return {word.partition("=")[0]: word for word in (*launch.flags, *flags)}


def _is_vllm(launch: Launch) -> bool:
    return launch.command.startswith("vllm")


def _parallel(launch: Launch) -> str:
    """The flag that says on how many cards."""
    return "--tensor-parallel-size" if _is_vllm(launch) else "--tp"

"""The command line of the engine: generate, serve, logits. torch is imported when one of them runs.

A release for several ranks is run by as many processes (`--ranks`, or torchrun), each with the same command: the leader
reads, chooses and prints, the others follow its orders.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagrelease.console import say, show
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.options import (
    ChatModeChoice,
    ContextOption,
    DeviceOption,
    DtypeChoice,
    DtypeOption,
    ModeChoice,
    NumericsChoice,
    NumericsOption,
    OperatorsOption,
    ReleaseArgument,
    ReplayChoice,
    RowsOption,
    SpeculateOption,
)
from flagrelease.engine.preflight import check_origins, choose_context, leads, require_writable, serving_key
from flagrelease.engine.speculation import AUTO as AUTO_DRAFTS
from flagrelease.engine.speculation import OFF, choose_speculation
from flagrelease.errors import UsageError
from flagrelease.extras import require_extra
from flagrelease.model.families import read_config
from flagrelease.ranks.command import AUTO, RanksOption, choose_ranks, cut_for, start_ranks
from flagrelease.ranks.job import ranks as job_ranks

if TYPE_CHECKING:
    from flagrelease.engine.numerics import NumericsName
    from flagrelease.engine.sampling import Sampling


def _named(numerics: NumericsChoice | None) -> NumericsName | None:
    return None if numerics is None else numerics.value


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: flagrelease generate releases/bf16-hf --prompt 'Who are you?'")(generate)
    app.command(epilog="Example: flagrelease serve releases/native-mp8, which starts its 8 ranks")(serve)
    app.command(epilog="Example: flagrelease logits releases/fp8-hf --tokens t.jsonl --out l.safetensors")(logits)


def generate(
    invocation: typer.Context,
    release: ReleaseArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt; its text goes to stdout.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="A JSONL file, or - for standard input: a string or a list of messages a line. JSONL goes to stdout.",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", help="What the model is told first, in a chat and in front of prompts that are text."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="With --prompts: the file for the answers (JSONL). Those that it holds already are not asked again.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --prompt: one JSON document on stdout.")] = False,
    mode: Annotated[
        ModeChoice, typer.Option("--mode", help="How the model answers; raw: no chat at all.")
    ] = ModeChoice.CHAT,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: the most likely token.")] = 1.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from the smallest set of tokens whose probabilities sum to this.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same seed gives the same text; prompt n of a file has seed + n.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens in each answer.")] = 512,
    numerics: NumericsOption = None,
    dtype: DtypeOption = DtypeChoice.BFLOAT16,
    device: DeviceOption = "auto",
    operators: OperatorsOption = "auto",
    context: ContextOption = None,
    batch: RowsOption = 4,
    speculate: SpeculateOption = OFF,
    ranks: RanksOption = AUTO,
) -> None:
    """Continue a prompt, a file of prompts, or (with neither) chat at the terminal."""
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt and --prompts: give one of them")
    if out is not None and prompts is None:
        raise UsageError("--out is for the answers of --prompts")
    if as_json and prompt is None:
        raise UsageError("--json is for the answer of --prompt; --prompts always writes JSON lines")
    if mode is ModeChoice.RAW and prompt is None and prompts is None:
        raise UsageError("--mode raw needs --prompt or --prompts: a chat at the terminal has turns")
    if mode is ModeChoice.RAW and system is not None:
        raise UsageError("--system is for chats; --mode raw continues text as it is")
    require_extra("engine", "generate")
    from flagrelease.engine.generate.answer_file import answerer, complete, count_answers, request_digest
    from flagrelease.engine.generate.jsonl import STDIN
    from flagrelease.engine.generate.prompts import encode_prompt, read_requests, require_room
    from flagrelease.engine.sampling import Sampling
    from flagrelease.engine.text import Tokenizer

    sampling: Sampling = Sampling(temperature, top_p, seed, max_tokens)
    context, speculation = choose_context(release, context), choose_speculation(speculate, release)
    efforts = effort = None
    if mode is not ModeChoice.RAW:
        efforts = read_efforts(release)
        effort = efforts.of(mode.value)
    requests, digests, tokens, opening = [], [], list[int](), None
    count = choose_ranks(ranks, cut_for(release), device)
    reads_input = prompts == STDIN or (prompt is None and prompts is None)
    if prompts == STDIN:
        start_ranks(invocation, count, interactive=True)  # what this process reads its first rank could not
    if leads():
        tokenizer = Tokenizer(release)
        if efforts is not None and effort is not None and effort.thinks:
            say(f"{release}: {efforts.said}")
        if out is not None:
            require_writable(out)
        if prompts is not None:
            requests = read_requests(prompts, tokenizer, effort, sampling, context, system)
        elif prompt is not None:
            tokens, opening = encode_prompt(tokenizer, prompt, effort, system)
            require_room(tokens, sampling, context)
        elif system is not None:
            encode_prompt(tokenizer, system, effort)
        if out is not None:
            from flagrelease.engine.numerics import own_numerics

            policy = _named(numerics) or own_numerics(release, read_config(release / "config.json")[0])
            digests = [request_digest(*each, answerer(release, policy, f"torch.{dtype.value}")) for each in requests]
            # Under torchrun the other ranks load the model whatever this one finds, and wait for it.
            if job_ranks() == 1 and count_answers(out, digests) == len(digests):
                say(complete(out, len(digests)))
                return
    start_ranks(invocation, count, interactive=reads_input)
    from flagrelease.engine.generate.terminal import Terminal
    from flagrelease.engine.session import Session

    how = _named(numerics), dtype.value, device, operators
    with Session.open(release, *how, speculation=speculation) as session:
        work = Terminal(session, effort, sampling, opening)
        if prompts is not None:
            work.answer_file(requests, digests, out, context, batch)
        elif prompt is not None:
            work.answer(tokens, context, as_json=as_json)
        else:
            work.chat(context, system)


def serve(
    invocation: typer.Context,
    release: ReleaseArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="The model's name. Default: the folder's.")] = None,
    mode: Annotated[
        ChatModeChoice, typer.Option("--mode", help="The mode of chats that do not choose one.")
    ] = ChatModeChoice.CHAT,
    numerics: NumericsOption = None,
    dtype: DtypeOption = DtypeChoice.BFLOAT16,
    device: DeviceOption = "auto",
    operators: OperatorsOption = "auto",
    context: ContextOption = None,
    batch: RowsOption = 16,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Sequences that may wait; more are told 429.")] = 64,
    budget: Annotated[
        int, typer.Option("--budget", min=1, help="Prompt tokens read between two tokens of running answers.")
    ] = 512,
    grace: Annotated[int, typer.Option("--grace", min=0, help="Seconds that answers get when it is stopped.")] = 25,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env",
            metavar="NAME",
            help="The environment variable that holds the key clients must send; required unless --host is loopback.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="URL",
            help="Web pages of this origin may ask from a browser (CORS); repeatable. *: all pages, which needs a key.",
        ),
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Print a line for every request on stderr.")] = False,
    speculate: SpeculateOption = AUTO_DRAFTS,
    ranks: RanksOption = AUTO,
    as_json: Annotated[
        bool, typer.Option("--json", help="When requests are accepted, print a JSON line with the address.")
    ] = False,
) -> None:
    """Serve OpenAI's API (completions, chats, responses) and Anthropic's messages."""
    require_extra("engine", "serve")
    require_extra("serve", "serve")
    from flagrelease.engine.serve.bind import bind, close
    from flagrelease.engine.serve.serving import Serving
    from flagrelease.engine.serve.serving import serve as serve_session
    from flagrelease.engine.session import Session
    from flagrelease.engine.text import Tokenizer

    context, origins = choose_context(release, context), allow_origin or []
    speculation = choose_speculation(speculate, release)
    key = serving_key(host, api_key_env) if leads() else None
    if leads():
        check_origins(origins, key)
        # The session reads both again: what is wrong with them is said before the model is loaded.
        read_efforts(release)
        Tokenizer(release)
    count = choose_ranks(ranks, cut_for(release), device)
    sockets = bind(host, port) if leads() else []
    if count > 1:
        close(sockets)  # the first rank takes the port
    start_ranks(invocation, count)
    public = name or release.resolve().name
    serving = Serving(
        public, mode.value, host, port, sockets, context, batch, queue, budget, grace, access_log, origins, key
    )
    how = _named(numerics), dtype.value, device, operators
    with Session.open(release, *how, speculation=speculation) as session:
        serve_session(session, serving, as_json=as_json)


def logits(
    invocation: typer.Context,
    release: ReleaseArgument,
    tokens: Annotated[
        Path, typer.Option("--tokens", help="A JSONL file: a list of token ids a line.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.", show_default=False)],
    top: Annotated[int, typer.Option("--top", min=1, help="Most likely tokens kept at each position.")] = 1000,
    replay: Annotated[
        ReplayChoice, typer.Option("--replay", help="All tokens at once, or one by one through the cache.")
    ] = ReplayChoice.PREFILL,
    numerics: NumericsOption = None,
    dtype: DtypeOption = DtypeChoice.BFLOAT16,
    device: DeviceOption = "auto",
    operators: OperatorsOption = "auto",
    ranks: RanksOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: what was written.")] = False,
) -> None:
    """Write teacher-forced log-probabilities of given tokens, for comparing machines."""
    require_extra("engine", "logits")
    from flagrelease.engine.generate import logits_file
    from flagrelease.engine.session import Session

    sequences = logits_file.read_tokens(tokens)
    logits_file.check_request(read_config(release / "config.json")[0], sequences, top)
    if leads():
        require_writable(out)
    start_ranks(invocation, choose_ranks(ranks, cut_for(release), device))
    with Session.open(release, _named(numerics), dtype.value, device, operators) as session:
        logits_file.write_logits(session.model, sequences, out, top, by_decode=replay is ReplayChoice.DECODE)
        if session.model.groups.is_leader:
            count = sum(map(len, sequences))
            written = {"out": str(out), "sequences": len(sequences), "tokens": count, "top": top}
            document = written | logits_file.describe(session.model, replay.value)
            show(as_json, document, lambda: say(f"{out}: {count:,} tokens of {len(sequences)} sequence(s)"))

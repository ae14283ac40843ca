"""Log-probabilities over HTTP against the model's own, read as OpenAI's and vLLM's documents describe them.

The tokenizer's tokens are single bytes, and the model is random: nearly everything it writes is parts of characters.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import tokenizers
import torch
from small_tokenizer import SPECIAL, write_tokenizer
from tokenizers import pre_tokenizers

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.serve.answers import logprobs as logprobs_module
from flagrelease.engine.serve.answers.written import written
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.model.v4.efforts import efforts_of

CONTEXT = 700
PROMPTS = ["The capital of France", "你好，世界🎉", "e\u0301\u0302 👩‍👩‍👧 \u2028\x00", "한국어 हिन्दी"]
LIMIT = 1e-4


class Oracle:
    """What tokens mean, from the vocabulary and the package's own table of bytes; log-probabilities from the model."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.model = model
        vocabulary = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        byte_of = {chr(byte): byte for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}  # in no UTF-8: visible, so themselves
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        for point in (*range(0x800), *range(0x800, 0xD800, 0x100), 0xE000, 0xF000, *range(0x10000, 0x110000, 0x10000)):
            ((shown, _),) = level.pre_tokenize_str(chr(point))
            byte_of |= dict(zip(shown, chr(point).encode(), strict=True))
        self.bytes = {
            token: name.encode() if name in SPECIAL or "unused" in name else bytes(byte_of[c] for c in name)
            for name, token in vocabulary.items()
        }

    def text(self, tokens: list[int]) -> str:
        return b"".join(self.bytes[token] for token in tokens).decode("utf-8", "replace")

    def name(self, token: int, lead: str) -> str:
        raw = self.bytes[token]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return lead + "".join(f"\\x{byte:02x}" for byte in raw)

    def logp(self, prompt: list[int], tokens: list[int]) -> list[list[float]]:
        """For each of `tokens`, and each of the prompt's but the first, those of the whole vocabulary."""
        table: list[list[float]] = self.model.logits([*prompt, *tokens])[:-1].double().log_softmax(-1).tolist()
        return table

    def offsets(self, tokens: list[int]) -> list[int]:
        """The characters of the text in which the tokens begin."""
        malformed: dict[int, int] = {}

        def note(error: UnicodeError) -> tuple[str, int]:
            assert isinstance(error, UnicodeDecodeError)
            malformed[error.start] = error.end
            return "?", error.end

        codecs.register_error("note", note)
        whole = b"".join(self.bytes[token] for token in tokens)
        whole.decode("utf-8", "note")
        character_of: list[int] = []
        place = count = 0
        while place < len(whole):
            lead = whole[place]
            end = malformed.get(place, place + (1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4))
            character_of += [count] * (end - place)
            place, count = end, count + 1
        begins = itertools.accumulate((len(self.bytes[token]) for token in tokens), initial=0)
        return [character_of[begin] for begin in list(begins)[:-1]]


class Server:
    def __init__(self, served: Served, oracle: Oracle) -> None:
        self.served, self.oracle = served, oracle

    def post(self, path: str, **body: Any) -> Any:
        status, answer = self.answer(path, **body)
        assert status == 200, answer
        return answer

    def answer(self, path: str, **body: Any) -> tuple[int, Any]:
        async def ask() -> tuple[int, Any]:
            transport = httpx2.ASGITransport(app=make_app(self.served))
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as caller:
                answer = await caller.post(path, json={"model": "small", **body})
                if not body.get("stream") or answer.status_code != 200:
                    return answer.status_code, answer.json()
                lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
                assert lines.pop() == "[DONE]"
                return answer.status_code, [json.loads(line) for line in lines]

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def server(quick_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer, model = Tokenizer(folder), engine.load(quick_release, "bf16", torch.float32)
    service = Service(Scheduler(Runner(model, rows=3, context=CONTEXT), tokenizer, budget=9), queue_limit=200)
    server = Server(Served(service, tokenizer, "small", "chat", efforts_of("preview")), Oracle(folder, model))
    service.start()
    yield server
    service.stop()


def check_lists(oracle: Oracle, prompt: list[int], tokens: list[int], logprobs: Any, count: int, echo: bool) -> None:
    """The four lists of a completion whose listed tokens are `tokens`."""
    table = oracle.logp(prompt, tokens)
    listed = [*prompt, *tokens] if echo else tokens
    rows: list[list[float] | None] = [None, *table] if echo else list(table[len(prompt) - 1 :])
    assert [len(values) for values in logprobs.values()] == [len(listed)] * 4
    behind = len(oracle.text(prompt))
    echoed = [*oracle.offsets(prompt), *(behind + place for place in oracle.offsets(tokens))]
    assert logprobs["text_offset"] == (echoed if echo else oracle.offsets(tokens))
    for n, (token, row) in enumerate(zip(listed, rows, strict=True)):
        assert logprobs["tokens"][n] == oracle.name(token, "bytes:")
        own, top = logprobs["token_logprobs"][n], logprobs["top_logprobs"][n]
        if row is None:
            assert own is top is None
            continue
        assert own == pytest.approx(row[token], abs=LIMIT)
        best = sorted(row, reverse=True)[:count]
        assert len(top) == count + (token not in {row.index(value) for value in best})
        assert top[oracle.name(token, "bytes:")] == own
        assert sorted(top.values(), reverse=True)[:count] == pytest.approx(best, abs=LIMIT)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("echo", [False, True])
def test_completions_tell_the_models_log_probabilities(server: Server, seed: int, echo: bool) -> None:
    text, count = PROMPTS[seed % 4], seed
    prompt = server.served.tokenizer.encode(text)
    body = {
        "prompt": text, "max_tokens": 40, "temperature": 1.5, "seed": seed, "logprobs": count, "echo": echo,
        "return_token_ids": True,
    }  # fmt: skip
    (whole,) = server.post("/v1/completions", **body)["choices"]
    assert whole["prompt_token_ids"] == prompt
    assert whole["text"] == text * echo + server.oracle.text([t for t in whole["token_ids"] if t != 1])
    check_lists(server.oracle, prompt, whole["token_ids"], whole["logprobs"], count, echo)

    chunks = [choice for chunk in server.post("/v1/completions", **body, stream=True) for choice in chunk["choices"]]
    assert len(chunks) > 5
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for chunk in chunks for value in chunk["logprobs"][name]] == values
    assert [token for chunk in chunks for token in chunk["token_ids"]] == whole["token_ids"]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [prompt, *[None] * (len(chunks) - 1)]
    said = ""
    for chunk in chunks:  # a token comes with the text in which it begins
        places = chunk["logprobs"]["text_offset"]
        said += chunk["text"]
        assert all(place <= len(said) for place in places)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_the_lists_with_the_text(server: Server, stream: bool) -> None:
    # tokens that the stop string cut away were listed, and their places were behind the text
    body = {"prompt": "x", "max_tokens": 60, "temperature": 1.5, "seed": 3, "logprobs": 2}
    free = server.post("/v1/completions", **body)["choices"][0]
    stop = free["text"][20:23]
    answer = server.post("/v1/completions", **body, stop=stop, stream=stream)
    parts = [choice for each in (answer if stream else [answer]) for choice in each["choices"]]
    text = "".join(part["text"] for part in parts)
    places = [place for part in parts for place in part["logprobs"]["text_offset"]]
    tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
    assert text == free["text"][: free["text"].index(stop)]
    count = sum(place < len(text) for place in free["logprobs"]["text_offset"])
    assert places == free["logprobs"]["text_offset"][:count]
    assert tokens == free["logprobs"]["tokens"][:count]


def test_the_end_token_is_listed_in_completions_and_not_in_chats(server: Server) -> None:
    forced = {"logit_bias": {"1": 100}, "temperature": 0, "max_tokens": 5}
    (choice,) = server.post("/v1/completions", prompt="x", logprobs=1, echo=True, **forced)["choices"]
    # both clients of lm-eval drop the last of the lists as the new token, whichever it is
    assert choice["text"] == "x"
    assert choice["logprobs"]["tokens"] == ["x", SPECIAL[1]]
    assert choice["logprobs"]["text_offset"] == [0, 1]
    messages = [{"role": "user", "content": "x"}]
    (choice,) = server.post("/v1/chat/completions", messages=messages, logprobs=True, **forced)["choices"]
    assert choice["message"]["content"] == ""
    assert choice["logprobs"] == {"content": [], "refusal": None}


@pytest.mark.parametrize("seed", range(4))
def test_chats_tell_bytes_and_the_models_log_probabilities(server: Server, seed: int) -> None:
    body = {
        "messages": [{"role": "user", "content": PROMPTS[seed]}], "max_tokens": 40, "temperature": 1.5, "seed": seed,
        "logprobs": True, "top_logprobs": seed, "return_token_ids": True,
    }  # fmt: skip
    whole = server.post("/v1/chat/completions", **body)
    (choice,) = whole["choices"]
    prompt, tokens = whole["prompt_token_ids"], [t for t in choice["token_ids"] if t != 1]
    entries = choice["logprobs"]["content"]
    assert (
        bytes(b for entry in entries for b in entry["bytes"]).decode("utf-8", "replace")
        == (choice["message"]["content"])
    )
    rows = server.oracle.logp(prompt, tokens)[len(prompt) - 1 :]
    for entry, token, row in zip(entries, tokens, rows, strict=True):
        assert (entry["token"], bytes(entry["bytes"])) == (server.oracle.name(token, ""), server.oracle.bytes[token])
        assert entry["logprob"] == pytest.approx(row[token], abs=LIMIT)
        best, top = sorted(row, reverse=True)[:seed], entry["top_logprobs"]
        assert [each["logprob"] for each in top[:seed]] == pytest.approx(best, abs=LIMIT)
        if seed:
            assert entry["bytes"] in [each["bytes"] for each in top]  # the chosen token is always there
        assert len(top) <= seed + bool(seed)
    chunks = server.post("/v1/chat/completions", **body, stream=True)
    streamed = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [each for one in streamed for each in (one["logprobs"] or {"content": []})["content"]] == entries
    assert [token for one in streamed for token in one.get("token_ids", [])] == choice["token_ids"]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [prompt, *[None] * (len(chunks) - 1)]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs(server: Server, path: str) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPTS[1]}]}
    if path == "/v1/completions":
        asked = {"prompt": PROMPTS[1], "echo": True, "logprobs": 1}
    whole = server.post(path, **asked, max_tokens=1, prompt_logprobs=3, return_token_ids=True)
    place = whole["choices"][0] if path == "/v1/completions" else whole
    prompt, listed = place["prompt_token_ids"], place["prompt_logprobs"]
    table = server.oracle.logp(prompt, [])
    assert listed[0] is None
    for token, row, each in zip(prompt[1:], table, listed[1:], strict=True):
        order = sorted(range(len(row)), key=lambda t: (-row[t], t))
        assert set(each) == {str(t) for t in [token, *order[:3]]}
        assert next(iter(each)) == str(token)
        for name, entry in each.items():
            assert entry["logprob"] == pytest.approx(row[int(name)], abs=LIMIT)
            assert entry["rank"] == order.index(int(name)) + 1
            assert entry["decoded_token"] == server.oracle.name(int(name), "")
    if path == "/v1/completions":
        echoed = place["logprobs"]["token_logprobs"][1 : len(prompt)]
        assert echoed == [each[str(token)]["logprob"] for token, each in zip(prompt[1:], listed[1:], strict=True)]


def test_tokens_by_id(server: Server) -> None:
    body = {"max_tokens": 4, "temperature": 0, "return_tokens_as_token_ids": True, "return_token_ids": True}
    (choice,) = server.post("/v1/completions", prompt="x", logprobs=2, **body)["choices"]
    names = [f"token_id:{token}" for token in choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    assert all(name in top for name, top in zip(names, choice["logprobs"]["top_logprobs"], strict=True))
    messages = [{"role": "user", "content": "x"}]
    chat = server.post("/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=1, **body)["choices"][0]
    named = [(e["token"], e["top_logprobs"][0]["token"]) for e in chat["logprobs"]["content"]]
    assert named == [(f"token_id:{token}",) * 2 for token in chat["token_ids"]]


def test_alternatives_of_one_name_are_kept(server: Server, tmp_path: Path) -> None:
    """Two tokens with the same text were one key of the object, with the last one's value."""
    write_tokenizer(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    names = {token: name for name, token in document["model"]["vocab"].items()}
    document["added_tokens"] += [{**document["added_tokens"][0], "id": n, "content": "same"} for n in (300, 301)]
    for n in (300, 301):
        del document["model"]["vocab"][names[n]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer(tmp_path)
    same = [n for n in range(320) if tokenizer.bytes_of(n) == b"same"]
    score = logprobs_module.TokenScore(same[-1], -2.0, ((7, -0.5), *((n, -1.0) for n in same[:-1]), (same[-1], -2.0)))
    forms = logprobs_module.Forms(tokenizer, 3)
    top = [json.loads(each) for each in forms.completion([(0, score)])["top_logprobs"]]
    assert len(top[0]) == len(score.top)
    assert top[0]["same"] == -2.0  # the chosen token has the name


def test_streams_of_several_prompts(server: Server) -> None:
    body = {"prompt": PROMPTS, "max_tokens": 8, "temperature": 1.0, "seed": 1, "logprobs": 1, "n": 2}
    whole = server.post("/v1/completions", **body)["choices"]
    chunks = [choice for chunk in server.post("/v1/completions", **body, stream=True) for choice in chunk["choices"]]
    assert [choice["index"] for choice in whole] == list(range(8))
    for choice in whole:
        ours = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in ours) == choice["text"]
        places = [place for chunk in ours for place in chunk["logprobs"]["text_offset"]]
        assert places == choice["logprobs"]["text_offset"]


def test_what_cannot_be_said_in_json_is(server: Server) -> None:
    score = logprobs_module.TokenScore(70, -math.inf, ((71, 0.0),), 9)
    forms = logprobs_module.Forms(server.served.tokenizer, 1)
    shown = json.loads("".join(written([*forms.chat([score]), forms.completion([(0, score)])])))
    assert shown[0]["top_logprobs"][1]["logprob"] == shown[1]["token_logprobs"][0] == -9999.0
    assert shown[0]["logprob"] == -9999.0


def test_a_whole_answer_holds_so_many_log_probabilities(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # 128 choices of 100,000 tokens with 20 alternatives would have been 30 GB of Python's objects
    monkeypatch.setattr(logprobs_module, "MOST_KEPT", 2000)
    messages = [{"role": "user", "content": "x"}]
    for path, body in {
        "/v1/completions": {"prompt": "x", "logprobs": 20, "n": 10, "max_tokens": 10},
        "/v1/chat/completions": {"messages": messages, "logprobs": True, "top_logprobs": 9},  # as the context allows
    }.items():
        status, answer = server.answer(path, **body)
        assert (status, answer["error"]["param"]) == (400, "logprobs")
        assert "of at most 2,000" in answer["error"]["message"]
    status, answer = server.answer("/v1/completions", prompt="x" * 600, prompt_logprobs=3, max_tokens=1)
    assert status == 400
    assert server.answer("/v1/completions", prompt="x", logprobs=20, n=9, max_tokens=10)[0] == 200
    assert server.answer("/v1/completions", prompt="x", logprobs=20, n=10, max_tokens=10, stream=True)[0] == 200


def test_prompt_logprobs_are_not_streamed(server: Server) -> None:
    status, answer = server.answer("/v1/completions", prompt="x", prompt_logprobs=1, stream=True)
    assert (status, answer["error"]["param"]) == (400, "prompt_logprobs")


def test_a_long_list_is_written_in_pieces(server: Server) -> None:
    body = {"prompt": "y" * 600, "max_tokens": 40, "logprobs": 20, "echo": True, "prompt_logprobs": 20}
    body |= {"ignore_eos": True, "seed": 5}
    whole = server.post("/v1/completions", **body)["choices"][0]
    assert len(json.dumps(whole)) > 4 << 16
    assert len(whole["logprobs"]["tokens"]) == 640
    assert len(whole["prompt_logprobs"]) == 600

"""From replies in every form that servers have to the numbers of a document, or to why they are not its numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_tokenizer import write_tokenizer

from flagrelease.engine.text import Tokenizer
from flagrelease.validate.endpoint.replies import CompletionReply, ScoredToken, TokensUsed
from flagrelease.validate.logits.served.bounds import LEAST, NOTHING
from flagrelease.validate.logits.served.names import TokenNames
from flagrelease.validate.logits.served.reading import PromptScores, UnreadableError, read_scores
from flagrelease.validate.logits.served.ways import Prompt, Way, WayName

HALF, TENTH = math.log(0.5), math.log(0.1)
TOKENS = (0, 5, 6)  # the first is the begin of sentence


class Letters:
    """A tokenizer: token 5 is "a", 6 "b", 7 and 8 halves of a character, 9 "a" again."""

    def bytes_of(self, token: int) -> bytes:
        return {0: b"<bos>", 5: b"a", 6: b"b", 7: b"\xe4", 8: b"\xb8", 9: b"a", 10: b"c"}.get(token, b"")


NAMES = TokenNames(Letters(), 11)


def by_id(token: int, logprob: float | None, **top: float) -> ScoredToken:
    others = tuple(ScoredToken("", int(name[1:]), value) for name, value in top.items())
    return ScoredToken("", token, logprob, top=others)


def by_name(text: str, logprob: float | None, **top: float) -> ScoredToken:
    return ScoredToken(text, None, logprob, top=tuple(ScoredToken(name, None, value) for name, value in top.items()))


FIRST = by_id(0, None)


def test_ids_are_placed_and_the_first_token_is_not_scored() -> None:
    read = read_scores([FIRST, by_id(5, HALF, t5=HALF, t7=TENTH), by_id(6, -9.0, t5=HALF, t7=TENTH)], TOKENS, None, 2)
    assert read.first == 1
    np.testing.assert_allclose(read.listed.target, [HALF, -9.0])
    found = [dict(zip(ids, logq, strict=True)) for ids, logq in zip(read.listed.ids, read.listed.logq, strict=True)]
    assert found[0] == {5: HALF, 7: TENTH, NOTHING: 0.0}
    assert found[1] == {5: HALF, 7: TENTH, 6: -9.0}  # the token that followed is none of the most likely ones
    np.testing.assert_allclose(read.listed.ceiling, [TENTH, TENTH])  # and is no ceiling


def test_a_token_behind_the_prompt_is_not_looked_at() -> None:
    scores = [FIRST, by_id(5, HALF, t5=HALF), by_id(6, HALF, t6=HALF), by_id(3, -1.0, t3=-1.0)]
    assert len(read_scores(scores, TOKENS, None, 1).listed.target) == 2


def test_a_server_that_leaves_out_the_begin_of_sentence_is_read_from_the_second_token_on() -> None:
    """llama.cpp's Python server: the first token that it shows has no log-probability either."""
    scores = [by_name("a", None), by_name("b", HALF, b=HALF, c=TENTH), by_name("c", -1.0)]
    read = read_scores(scores, TOKENS, NAMES, 2)
    assert (read.first, read.listed.target.tolist()) == (2, [HALF])


def test_a_name_of_two_tokens_tells_nothing_but_how_likely_it_is() -> None:
    scores = [by_name("<bos>", None), by_name("b", HALF, b=HALF, a=TENTH), by_name("b", HALF, b=HALF, c=TENTH)]
    read = read_scores(scores, (0, 6, 6), NAMES, 2)
    assert [set(row) - {NOTHING} for row in read.listed.ids.tolist()] == [{6}, {6, 10}]
    np.testing.assert_allclose(read.listed.ceiling, [TENTH, TENTH])
    # of the own token the place says which one it is
    own = read_scores([by_name("<bos>", None), by_name("a", HALF, a=HALF, b=TENTH)], (0, 9), NAMES, 2)
    assert set(own.listed.ids[0].tolist()) == {9, 6}


def test_a_nameless_token_that_is_likelier_than_the_last_one_is_the_ceiling() -> None:
    scores = [by_name("<bos>", None), by_name("b", -3.0, a=HALF, c=TENTH, b=-3.0)]
    assert read_scores(scores, (0, 6), NAMES, 2).listed.ceiling.tolist() == [HALF]


def test_a_list_by_name_that_lost_a_token_has_no_ceiling() -> None:
    """Two of three have one name and one place: only `b`, which is listed besides them, makes the list long enough."""
    lost = by_name("b", -4.0, c=HALF, b=-4.0)
    assert read_scores([by_name("<bos>", None), lost], (0, 6), NAMES, 2).listed.ceiling.tolist() == [0.0]


def test_halves_of_characters_have_the_names_that_servers_give_them() -> None:
    assert NAMES.fits("\N{REPLACEMENT CHARACTER}", 7)
    assert NAMES.fits("bytes:\\xe4", 7)
    assert NAMES.id_of("\N{REPLACEMENT CHARACTER}") is None
    assert NAMES.id_of("bytes:\\xb8") == 8
    assert NAMES.id_of("a") is None
    assert NAMES.id_of("b") == 6


def test_names_of_a_real_tokenizer_lead_back_to_its_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    names = TokenNames(Tokenizer(folder), 320)
    assert [names.id_of(text) for text in ("</think>", "a", "<unused-3>")] == [5, names.id_of("a"), 266]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([FIRST, by_id(5, HALF)], "2 tokens are scored, the prompt has 3"),
        ([FIRST, by_id(5, HALF), by_id(7, HALF)], "token 2 is 7 there and 6 here"),
        ([by_name("<bos>", None), by_name("a", HALF), by_name("x", HALF)], "token 2 is 'x' there and 6 here"),
        ([], "0 tokens are scored"),
        ([FIRST, by_id(5, HALF), by_id(6, None)], "a token behind the first has no log-probability"),
        ([FIRST, by_id(5, HALF, t5=HALF), by_id(6, 0.5, t6=0.5)], "0.5 is no log-probability"),
        (
            [FIRST, by_id(5, HALF, t5=HALF, t7=HALF, t8=TENTH), by_id(6, HALF)],
            "probabilities at token 1 add up to 1.1000",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_the_documents_is_refused_with_the_reason(scores: list[ScoredToken], reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_scores(scores, TOKENS, NAMES, 1)


def test_what_is_no_number_stays_none_and_minus_infinity_is_as_servers_write_it() -> None:
    read = read_scores([FIRST, by_id(5, float("nan"), t7=HALF), by_id(6, -math.inf, t7=HALF)], TOKENS, None, 1)
    assert np.isnan(read.listed.target[0])
    assert read.listed.target[1] == LEAST


@pytest.mark.parametrize("name", ["prompt-logprobs", "echo-names"])
def test_lists_that_are_shorter_than_asked_for_are_refused(name: WayName) -> None:
    """What lists of this length show is worked out from their length, so a pass would rest on lists that never came."""
    by_ids = name == "prompt-logprobs"
    first = FIRST if by_ids else by_name("<bos>", None)
    whole = by_id(5, HALF, t5=HALF, t7=TENTH) if by_ids else by_name("a", HALF, a=HALF, b=TENTH)
    behind = ScoredToken("x", None, -1.0)

    def read(*told: ScoredToken) -> PromptScores:
        lists = {"prompt_logprobs": (first, *told)} if by_ids else {"logprobs": (first, *told, behind)}
        given: dict[str, Any] = {"logprobs": None, "prompt_logprobs": None} | lists
        reply = CompletionReply(
            "", "length", TokensUsed(3, 1, None), token_ids=None, prompt_token_ids=None, raw={}, **given
        )
        return Way(name=name, alternatives=2).read(Prompt(0, (0, 5, 5), "", ""), reply, NAMES)

    assert len(read(whole, whole).listed.target) == 2
    with pytest.raises(UnreadableError, match="1 of 2 lists are shorter than asked for, the least 0"):
        read(whole, replace(whole, top=()))

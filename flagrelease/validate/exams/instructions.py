"""Instructions that a rule can check: JSON only, so many words or bullets, a keyword, a script.

The names and arguments are those of IFEval (google/IFEval, columns `instruction_id_list` and `kwargs`), so that its
file can be given as it is. What no rule here decides (sentences, languages that share a script) is not asked, and the
exam says over how many of its questions it went.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-)[ \t]*\S", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*")
_SCRIPTS = {  # language -> how Unicode names its letters; languages that share a script are not told apart
    "zh": ("CJK",), "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ko": ("HANGUL",), "ar": ("ARABIC",), "th": ("THAI",),
    "bn": ("BENGALI",), "ta": ("TAMIL",), "te": ("TELUGU",), "kn": ("KANNADA",), "gu": ("GUJARATI",),
    "pa": ("GURMUKHI",),
}  # fmt: skip
_MOST = 0.6  # of the letters; names and terms may stand in another script


def is_decided(name: str, given: Arguments) -> bool:
    """Whether a rule here can check an instruction."""
    return name in CHECKS and (name != "language:response_language" or given.get("language") in _SCRIPTS)


def _compares(count: int, wanted: int, relation: str) -> bool:
    return count >= wanted if relation == "at least" else count < wanted


def _is_json(text: str, _: Arguments) -> bool:
    fenced = _FENCE.fullmatch(text)
    try:
        json.loads(fenced[1] if fenced else text)
    except ValueError:
        return False
    return True


def _words(text: str, given: Arguments) -> bool:
    return _compares(len(re.findall(r"\w+", text)), given["num_words"], given["relation"])


def _paragraphs(text: str, given: Arguments) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    return len(parts) == given["num_paragraphs"] and all(part.strip() for part in parts)


def _first_word(text: str, given: Arguments) -> bool:
    place, first = given["nth_paragraph"] - 1, str(given["first_word"]).lower()
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != given["num_paragraphs"]:
        return False
    words = re.findall(r"\w+", parts[place])
    return [word.lower() for word in words[:1]] == [first]


def _sections(text: str, given: Arguments) -> bool:
    heads = re.findall(rf"\b{re.escape(given['section_spliter'])}\s+\d+", text)
    return bool(len(heads) >= given["num_sections"])


def _word_count(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _letters(text: str, given: Arguments) -> bool:
    return _compares(text.lower().count(given["letter"].lower()), given["let_frequency"], given["let_relation"])


def _capitals(text: str, given: Arguments) -> bool:
    count = sum(word.isupper() for word in re.findall(r"\w+", text))
    return _compares(count, given["capital_frequency"], given["capital_relation"])


def _language(text: str, given: Arguments) -> bool:
    letters = [unicodedata.name(sign, "") for sign in text if sign.isalpha()]
    own = sum(name.startswith(_SCRIPTS[given["language"]]) for name in letters)
    return bool(letters) and own >= _MOST * len(letters)


def _two(text: str, _: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******") if part.strip()]
    return len(parts) == 2 and parts[0] != parts[1]


CHECKS: dict[str, Check] = {
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda text, _: text.isupper(),
    "change_case:english_lowercase": lambda text, _: text.islower(),
    "combination:repeat_prompt": lambda text, given: text.lower().startswith(given["prompt_to_repeat"].strip().lower()),
    "combination:two_responses": _two,
    "detectable_content:number_placeholders": (
        lambda text, given: len(re.findall(r"\[[^\[\]]+\]", text)) >= given["num_placeholders"]
    ),
    "detectable_content:postscript": lambda text, given: given["postscript_marker"].lower() in text.lower(),
    "detectable_format:constrained_response": (
        lambda text, _: any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))
    ),
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": lambda text, given: len(_BULLET.findall(text)) == given["num_bullets"],
    "detectable_format:number_highlighted_sections": (
        lambda text, given: len(_HIGHLIGHT.findall(text)) >= given["num_highlights"]
    ),
    "detectable_format:title": lambda text, _: bool(re.search(r"<<[^\n<>]*\w[^\n<>]*>>", text)),
    "keywords:existence": lambda text, given: all(_word_count(text, word) for word in given["keywords"]),
    "keywords:forbidden_words": lambda text, given: (
        not any(_word_count(text, word) for word in given["forbidden_words"])
    ),
    "keywords:frequency": (
        lambda text, given: _compares(_word_count(text, given["keyword"]), given["frequency"], given["relation"])
    ),
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "punctuation:no_comma": lambda text, _: "," not in text,
    "startend:end_checker": (
        lambda text, given: text.strip('" ').lower().endswith(given["end_phrase"].strip().lower())
    ),
    "startend:quotation": lambda text, _: len(text) > 1 and text[0] == '"' and text[-1] == '"',
}

"""Numbers, expressions, code and instructions: data of each form, how answers are marked. All questions are ours."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow
import pyarrow.parquet
import pytest
from scripted_exam import choice_rules, nothing, write_jsonl

from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.v4.efforts import Efforts, efforts_of
from flagrelease.records.rules import BENCHMARK_PRESETS, BenchmarkRules
from flagrelease.validate.baseline import BaselineFolder
from flagrelease.validate.exams.answerer import Ask, AskRules, Reply
from flagrelease.validate.exams.exam import Exam, read_exam
from flagrelease.validate.exams.extraction import refuses
from flagrelease.validate.exams.instructions import CHECKS, is_decided
from flagrelease.validate.exams.items import Item
from flagrelease.validate.exams.marking.code import last_block, program_of
from flagrelease.validate.exams.marking.expressions import Equality, ExpressionMarker
from flagrelease.validate.exams.marking.marking import marking, require_markers
from flagrelease.validate.exams.marking.sandbox import Sandbox
from flagrelease.validate.exams.run import run_side
from flagrelease.validate.exams.stage import benchmarks_stage
from flagrelease.validate.stages.model_stages import BenchmarksStage, StageInputs

PYTHON = f"{shlex.quote(sys.executable)} -I -"  # no sandbox at all: the programs here are the tests' own
FUNCTION = {
    "task_id": "Ours/0",
    "prompt": 'from math import isqrt\n\n\ndef side(area: int) -> int:\n    """The side of a square of this area."""\n',
    "entry_point": "side",
    "test": "def check(candidate):\n    assert candidate(49) == 7\n    assert candidate(0) == 0\n",
    "canonical_solution": "    return isqrt(area)\n",
}
PROGRAM = {
    "question_id": "ours_1",
    "question_content": "Read an integer and print its square.",
    "public_test_cases": json.dumps(
        [{"input": "3\n", "output": "9\n", "testtype": "stdin"}, {"input": "-4", "output": "16", "testtype": "stdin"}]
    ),
}
FOLLOWED = {
    "key": 1,
    "prompt": "Name two rivers as bullets, without a comma.",
    "instruction_id_list": ["detectable_format:number_bullet_lists", "punctuation:no_comma"],
    "kwargs": [{"num_bullets": 2}, {"num_bullets": None}],
}
GRADE = {"question": "Ann has 3 bags of 6 marbles. How many?", "answer": "3 * 6 = <<3*6=18>>18 marbles.\n#### 18"}
DATA: dict[str, dict[str, Any]] = {
    "number": GRADE,
    "expression": {"problem": "Halve 1.", "answer": r"\frac{1}{2}"},
    "code": FUNCTION,
    "instructions": FOLLOWED,
}


def rules_of(kind: str, **more: Any) -> BenchmarkRules:
    return choice_rules(kind=kind, prompt="{question}", **more)


def exam_of(kind: str, folder: Path, record: dict[str, Any] | None = None) -> Exam:
    return read_exam(rules_of(kind), [write_jsonl(folder / "data.jsonl", [record or DATA[kind]])])


def block(code: str) -> str:
    return f"Here it is:\n\n```python\n{code}\n```\nIt works."


@pytest.fixture(scope="module")
def equality() -> Iterator[Equality]:
    with Equality() as opened:
        yield opened


MARKS = [
    ("number", r"\boxed{18\text{ marbles}}", "18"),
    ("number", r"\boxed{17}", "17"),
    ("number", "no idea", None),
    ("expression", r"\boxed{0.5}", r"\frac{1}{2}"),
    ("expression", r"\boxed{\frac{2}{4}}", r"\frac{1}{2}"),
    ("expression", r"\boxed{\frac{1}{3}}", "other"),
    ("expression", "a half", None),
    ("instructions", "- Elbe\n- Oder", "follows"),
    ("instructions", "- Elbe, in the west\n- Oder", "broken"),
    ("instructions", " ", None),
    ("code", block("def side(area):\n    return isqrt(area)"), "passes"),  # the import is the prompt's
    ("code", block("    return isqrt(area)\n"), "passes"),  # the body alone
    ("code", block("def side(area):\n    return area"), "other"),
    ("code", block("def side(area:"), "other"),
    ("code", block("import os\nos._exit(0)\ndef side(area):\n    return 7"), "other"),  # leaves before its tests
    ("code", "def side(area): return isqrt(area)", None),
    ("code", "```python\ndef side(area):\n    return isq", None),  # cut off
]


@pytest.mark.parametrize(("kind", "text", "expected"), MARKS)
def test_an_answer_is_marked(kind: Any, text: str, expected: str | None, tmp_path: Path, equality: Equality) -> None:
    (item,) = exam_of(kind, tmp_path).items
    if kind == "expression":
        mark = ExpressionMarker(equality).mark(item, text)
    else:
        with marking(kind, PYTHON) as marker:
            mark = marker.mark(item, text)
    assert mark.value == expected or (expected == "other" and str(mark.value).startswith("other "))
    assert not mark.undecided
    assert (mark.value == item.answer) == (expected in ("18", r"\frac{1}{2}", "follows", "passes"))


EQUAL = [
    (r"3\sqrt{13}", r"\sqrt{117}", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", True),
    ("p - q", "-q+p", True),
    (r"\text{Evelyn}", "Evelyn", True),
    ("[-2,7]", "(-2,7)", False),
    ("1,-2", "-2,1", True),
    ("12", r"x = 12\text{ or }x = 13", False),
    (r"x = 12\text{ or }x = 13", "13, 12", True),
    ("2k+2", "2(k+1)", True),
    ("4", "__import__('os').getpid()", False),
    ("7", "7" * 500, None),  # a loop
]


@pytest.mark.parametrize(("right", "given", "expected"), EQUAL)
def test_expressions_are_equal_by_value(right: str, given: str, expected: bool | None, equality: Equality) -> None:
    assert equality.equal(right, given) is expected


def test_a_package_that_compares_nothing_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('its parser is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ResourceError, match="does not find 1/2 equal"):
        require_markers(["expression"], None)


@pytest.mark.slow
def test_what_cannot_be_computed_is_undecided_and_costs_no_more_than_seconds(equality: Equality) -> None:
    assert equality.equal("3", "9^{9^{9^9}}") is None
    assert equality.equal("3", "3.0") is True  # the next one is compared again


def test_a_program_reads_and_writes_lines(tmp_path: Path) -> None:
    (item,) = exam_of("code", tmp_path, PROGRAM).items
    with marking("code", PYTHON) as marker:
        assert marker.mark(item, block("print(int(input()) ** 2)")).value == "passes"
        assert (
            marker.mark(item, block("import sys\nprint(int(sys.stdin.read()) ** 2, end='')\nsys.exit()")).value
            == "passes"
        )
        assert marker.mark(item, block("print(9)")).value != "passes"
    functional = PROGRAM | {"public_test_cases": json.dumps([{"input": "3", "output": "9", "testtype": "functional"}])}
    with pytest.raises(UsageError, match="no record has a question that can be marked"):
        exam_of("code", tmp_path, functional)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (None, "needs --sandbox"),
        ("true", "one true assertion fails"),
        ("no-such-command-here", "cannot be run"),
        ("", "names no command"),
        ("docker run 'image", "No closing quotation"),
        ("sh -c 'cat >/dev/null; exit 83'", "leaves before its end passes"),
    ],
)
def test_a_sandbox_that_is_none_is_refused_before_anything_is_asked(command: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said), marking("code", command):
        pass


def test_a_program_that_never_ends_is_stopped() -> None:
    assert not Sandbox(PYTHON, seconds=1.0).passes("while True: pass")


def test_nothing_that_a_model_writes_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a program of an answer compiles and executes nothing."""
    monkeypatch.setattr("builtins.exec", None)
    monkeypatch.setattr("builtins.eval", None)
    monkeypatch.setattr("builtins.compile", None)
    program = program_of("raise SystemExit", {"cases": [{"input": "", "output": ""}]})
    assert "exec(compile(_code" in program
    assert last_block(block("x = 1")) == "x = 1\n"


INSTRUCTIONS = [
    ("detectable_format:json_format", {}, '{"a": [1, 2]}', "The answer: {}"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{'a': 1}"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "river"}, "a b\n\nRiver c", "a b\n\nc river"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n- a", "**bold**"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and b"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\na\nSection 2\nb", "Section 1\na"),
    ("detectable_format:title", {}, "<<River>>\ntext", "River"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP.S. b", "a"),
    ("keywords:existence", {"keywords": ["river", "lock"]}, "A River and a lock.", "A rivers lock"),
    ("keywords:forbidden_words", {"forbidden_words": ["lock"]}, "A locker", "A lock"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b a", "a b"),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "less than"}, "z", "zZ"),
    ("language:response_language", {"language": "zh"}, "渡口在 Alder 北边的河岸上", "The lock is north of 河"),
    ("language:response_language", {"language": "ko"}, "강은 북쪽에 있다", "川は北にある"),
    ("change_case:english_lowercase", {}, "all low, 3", "Not low"),
    ("change_case:english_capital", {}, "ALL HIGH", "ALL high"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "AB c DE", "AB c"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. And more", "More"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
    ("startend:end_checker", {"end_phrase": "The end."}, "so it is. THE END.", "The end. No"),
    ("startend:quotation", {}, '"a"', 'a'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "follows", "breaks"), INSTRUCTIONS)
def test_an_instruction_is_checked_by_its_rule(name: str, given: dict[str, Any], follows: str, breaks: str) -> None:
    assert is_decided(name, given)
    assert CHECKS[name](follows, given)
    assert not CHECKS[name](breaks, given)


def test_every_rule_is_tried_and_what_no_rule_decides_is_not_asked(tmp_path: Path) -> None:
    assert {case[0] for case in INSTRUCTIONS} == CHECKS.keys()
    undecided = [
        FOLLOWED | {"instruction_id_list": [name], "kwargs": [given]}
        for name, given in (
            ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}),
            ("language:response_language", {"language": "de"}),
        )
    ]
    exam = read_exam(rules_of("instructions"), [write_jsonl(tmp_path / "a.jsonl", [FOLLOWED, *undecided])])
    assert len(exam.items) == 1


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("code", PROGRAM | {"public_test_cases": "[{"}),
        ("code", PROGRAM | {"public_test_cases": '[{"testtype": "stdin", "input": "secret"}]'}),
        ("code", FUNCTION | {"prompt": 7}),
        ("instructions", FOLLOWED | {"kwargs": [{}, {}]}),
        ("instructions", FOLLOWED | {"kwargs": [{"num_bullets": 2}]}),
        ("instructions",
         FOLLOWED | {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": "many"}]}),
    ],
)  # fmt: skip
def test_a_malformed_record_is_refused_when_it_is_read(kind: str, record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"data.jsonl: record 1 is not of the form of {kind}") as refused:
        exam_of(kind, tmp_path, record)
    assert "secret" not in str(refused.value)


def test_parquet_is_read_as_the_hub_has_it(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([FUNCTION, FUNCTION | {"task_id": "Ours/1"}])
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    exam = read_exam(rules_of("code"), [tmp_path / "test.parquet"])
    assert [item.id for item in exam.items] == ["Ours/0", "Ours/1"]
    assert json.loads(exam.items[0].key)["prompt"] == FUNCTION["prompt"]  # to the last space
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="not Parquet"):
        read_exam(rules_of("code"), [tmp_path / "bad.parquet"])


def test_other_tests_are_another_exam(tmp_path: Path) -> None:
    one = exam_of("code", tmp_path)
    other = exam_of("code", tmp_path, FUNCTION | {"test": "def check(candidate):\n    pass\n"})
    assert one.items[0].prompt == other.items[0].prompt
    assert one.sha256 != other.sha256


class Says:
    """Says the same text to everything."""

    stack = "says"
    efforts: Efforts = efforts_of("0731")

    def __init__(self, text: str) -> None:
        self.text = text

    def answer(self, asks: list[Ask], rules: AskRules) -> Iterator[tuple[Ask, Reply]]:
        for ask in asks:
            yield ask, Reply(self.text, False, 20, 10, "stop", f"{ask.repeat:064x}")


@pytest.mark.parametrize("kind", sorted(DATA))
def test_lm_eval_scores_what_was_marked(kind: str, tmp_path: Path) -> None:
    """No text of an answer, no test and no question gets into the journal or the side."""
    exam = exam_of(kind, tmp_path)
    right = next(text for of, text, expected in MARKS if of == kind and expected == exam.items[0].answer)
    for text, score in ((right, 1.0), ("I'm sorry, but I can't help with that.", 0.0)):
        journal = tmp_path / f"{score}.jsonl"
        side = run_side(exam, Says(text), "me", journal, 4, nothing, sandbox=PYTHON)  # type: ignore[arg-type]
        assert side.scores().mean() == score
        assert side.refused_rate() == (0.0 if score or kind == "instructions" else 1.0)
        written = journal.read_text() + side.model_dump_json()
        for secret in ("isqrt", "Elbe", "marbles", "Halve", "rivers"):
            assert secret not in written


def test_refusals_are_told_from_other_answers_without_a_form() -> None:
    assert refuses("I'm sorry, but I can't help with that.")
    assert refuses("抱歉，我无法回答。")
    assert not refuses("I think the answer is about twelve.")


def test_presets_of_every_kind_ask_their_own_data(tmp_path: Path) -> None:
    records = DATA | {"multiple-choice": None, "integer": None}
    for preset in BENCHMARK_PRESETS:
        rules = BenchmarkRules.model_validate({"preset": preset})
        record = PROGRAM if preset == "livecodebench" else records[rules.kind]
        if record is not None:
            (item,) = read_exam(rules, [write_jsonl(tmp_path / f"{preset}.jsonl", [record])]).items
            assert isinstance(item, Item)
            assert "{question}" not in item.prompt


def test_code_without_a_sandbox_is_not_run_and_that_is_said(tmp_path: Path) -> None:
    rules = {"humaneval": rules_of("code", title="HumanEval")}
    request = SimpleNamespace(rules=SimpleNamespace(benchmarks=rules), sandbox=None)
    ready = SimpleNamespace(request=request, baseline=BaselineFolder(tmp_path))
    stage = BenchmarksStage(StageInputs(cast(Any, ready), "no device"))
    assert stage.missing() == "an exam of code: it runs what the model writes, and needs --sandbox"
    request.sandbox = PYTHON
    assert stage.missing() == "the baseline has no answers to humaneval"
    said = benchmarks_stage([], by_endpoint=False, left_out=["HumanEval"])
    assert said.verdict == "cannot-tell"
    assert said.detail == "Not run: HumanEval (it runs what the model writes, and needs --sandbox)."

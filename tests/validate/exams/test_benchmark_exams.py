"""Benchmark data and what is made of it: strict reading, the same exam everywhere."""

from __future__ import annotations

import contextlib
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scripted_exam import MARKER, ScriptedAnswerer, choice_exam, choice_records, choice_rules, nothing, write_jsonl

from flagrelease.errors import UsageError, VerificationError
from flagrelease.records.rules import BENCHMARK_PRESETS, BenchmarkRules
from flagrelease.validate.exams import items as items_module
from flagrelease.validate.exams.comparison import compare
from flagrelease.validate.exams.exam import read_exam
from flagrelease.validate.exams.records import Columns, read_records
from flagrelease.validate.exams.run import run_side

ROOT = Path(__file__).parents[3]
TINY = ROOT / "examples" / "tiny"
INTEGER_RULES = {"title": "Integers", "kind": "integer", "prompt": "{question}\nAnswer:"}
AIME = {"problem": f"Find {MARKER}.", "answer": "073"}


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_the_tiny_models_questions_are_asked_in_the_form_it_was_trained_on() -> None:
    sys.path.insert(0, str(TINY))
    import tasks

    for file, rules in (
        (tasks.MULTIPLE_CHOICE, choice_rules()),
        (tasks.INTEGERS_1, choice_rules(**INTEGER_RULES)),
        (tasks.INTEGERS_2, choice_rules(**INTEGER_RULES)),
    ):
        expected = tasks.read_items(TINY / "tasks" / file)
        items = read_exam(rules, [TINY / "tasks" / file]).items
        assert [item.prompt for item in items] == [prompt for prompt, _ in expected]
        assert all(reply.endswith(f"\\boxed{{{i.answer}}}") for i, (_, reply) in zip(items, expected, strict=True))


def test_csv_and_jsonl_are_the_same_exam(tmp_path: Path) -> None:
    records = choice_records(5)
    records[0] |= {"Correct Answer": "12", "Incorrect Answer 1": "012", "Incorrect Answer 2": "12.0"}  # trap: CSV types
    records[1]["Question"] = 'A "quoted",\ncomma and {options} in two lines\u2028of text'
    rows = [[*record.values(), "another column"] for record in records]
    table = write_csv(tmp_path / "a.csv", [*records[0], "Subdomain"], rows)
    exams = [read_exam(choice_rules(), [path]) for path in (table, write_jsonl(tmp_path / "a.jsonl", records))]
    assert exams[0].items == exams[1].items
    assert exams[0].sha256 == exams[1].sha256
    assert exams[0].revision != exams[1].revision  # which says which file it was
    assert ") 012\n" in exams[0].items[0].prompt


def test_numbers_in_json_are_text(tmp_path: Path) -> None:
    records = [choice_records(1)[0] | {"Correct Answer": 5, "Incorrect Answer 1": 50}]
    (item,) = read_exam(choice_rules(), [write_jsonl(tmp_path / "a.jsonl", records)]).items
    assert ") 5\n" in item.prompt + "\n"
    records[0]["Incorrect Answer 2"] = 1.50
    with pytest.raises(UsageError, match="'Incorrect Answer 2' is neither text nor an integer"):
        read_exam(choice_rules(), [write_jsonl(tmp_path / "a.jsonl", records)])


def test_integers_are_integers(tmp_path: Path) -> None:
    rules = choice_rules(**INTEGER_RULES)
    (item,) = read_exam(rules, [write_jsonl(tmp_path / "a.jsonl", [AIME])]).items
    assert item.answer == "73"
    (again,) = read_exam(rules, [write_jsonl(tmp_path / "b.jsonl", [AIME | {"answer": 73, "year": 2025}])]).items
    assert again == item


def test_two_years_are_one_exam(tmp_path: Path) -> None:
    years = [write_jsonl(tmp_path / f"{i}.jsonl", [AIME | {"problem": f"Find {i}."}]) for i in range(2)]
    assert len(read_exam(choice_rules(**INTEGER_RULES), years).items) == 2
    with pytest.raises(UsageError, match="appears twice"):
        read_exam(choice_rules(**INTEGER_RULES), [years[0], years[0]])


RECORD = choice_records(1)[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "holds no records"),
        ("a.jsonl", "\n\n", "holds no records"),
        ("a.csv", "", "holds no records"),
        ("a.csv", "Record ID,Question\n", "holds no records"),
        ("a.csv", f"Record ID,Question\n1,{MARKER}\n", "lacks 'Correct Answer', 'Incorrect Answer 1'"),
        ("a.csv", f"Record ID,Question\n1,{MARKER},3\n", "a.csv:2: 3 fields, the header has 2"),
        ("a.csv", f"Question,Question\n{MARKER},1\n", "two columns have one name"),
        ("a.csv", f'Record ID,Question\n1,"{MARKER}', "not CSV"),
        ("a.jsonl", f'{{"Question": "{MARKER}"', "a.jsonl:1: not JSON"),
        ("a.jsonl", f'["{MARKER}"]\n', "a.jsonl:1: not a JSON object"),
        ("a.jsonl", json.dumps({"Question": MARKER, "q": 1}), "lacks 'Record ID'.*; it has 2 fields"),
        ("a.csv", f"1,{MARKER} one,{MARKER} two\n2,a,b\n", "lacks 'Record ID'.*; it has 3 fields"),  # no header
        ("a.jsonl", json.dumps(RECORD | {"Question": f"{MARKER} \frac12"}), "control character"),
        ("a.jsonl", json.dumps(RECORD | {"Question": "  "}), "'Question' is empty"),
        ("a.jsonl", json.dumps(RECORD | {"Incorrect Answer 1": RECORD["Correct Answer"]}), "same as the right one"),
        ("a.jsonl", json.dumps(RECORD) + "\n" + json.dumps(RECORD), "'item-0' appears twice"),
        ("a.jsonl", json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"Question": None}), "a.jsonl:2: 'Question'"),
        ("a.txt", "", ".csv, .jsonl or .parquet"),
    ],
)
def test_data_that_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=said) as caught:
        read_exam(choice_rules(), [tmp_path / name])
    assert MARKER not in str(caught.value)
    assert caught.value.__cause__ is None


def test_data_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    for path, said in ((tmp_path / "none.csv", "not found"), (tmp_path / "a.jsonl", "not UTF-8")):
        with pytest.raises(UsageError, match=said):
            read_exam(choice_rules(), [path])
    with pytest.raises(UsageError, match="the answer is not an integer"):
        read_exam(choice_rules(**INTEGER_RULES), [write_jsonl(tmp_path / "b.jsonl", [AIME | {"answer": "1/2"}])])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60) | st.text('{}[]",:\\n\\ abc0.', max_size=60).map(str.encode),
    st.sampled_from(["csv", "jsonl"]),
)
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes, form: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        assert all(record["a"] for record in read_records(path, [Columns(("a",))])[1])


SCRIPT = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from scripted_exam import choice_rules
from flagrelease.validate.exams.exam import read_exam
random.seed(sys.argv[3])
print(read_exam(choice_rules(), [Path(sys.argv[2])]).sha256)
"""


def test_two_hosts_sit_the_same_exam(tmp_path: Path) -> None:
    """Trap 1: nothing may depend on the state of a generator, on hash seeds, or on the order of the file."""
    path = write_jsonl(tmp_path / "a.jsonl", choice_records(30))
    here = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path)]
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run([*here, seed], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed})
        digests.add(done.stdout)
    assert digests == {read_exam(choice_rules(), [path]).sha256 + "\n"}


def test_options_stand_at_all_places() -> None:
    places = [items_module.order_options(f"item-{i}", ["right", "a", "b", "c"]).index("right") for i in range(400)]
    assert min(places.count(place) for place in range(4)) > 70


def test_a_shuffle_by_the_global_generator_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect of trap 1, on one host only: its side is not compared with the other's."""
    native_exam = choice_exam(tmp_path / "native")
    native = run_side(native_exam, ScriptedAnswerer(native_exam), "n", tmp_path / "n.jsonl", 4, nothing)
    monkeypatch.setattr(items_module, "order_options", lambda _, options: random.sample(list(options), len(options)))
    chip_exam = choice_exam(tmp_path / "chip")
    chip = run_side(chip_exam, ScriptedAnswerer(chip_exam), "c", tmp_path / "c.jsonl", 4, nothing)
    with pytest.raises(VerificationError, match="sat different exams"):
        compare(choice_rules(), native, chip)


@pytest.mark.parametrize("preset", sorted(BENCHMARK_PRESETS))
def test_presets_are_whole_and_survive_the_report(preset: str) -> None:
    rules = BenchmarkRules.model_validate({"preset": preset, "max_tokens": 131072})
    assert BenchmarkRules.model_validate_json(rules.model_dump_json()) == rules
    assert rules.max_tokens == 131072
    sizes = {"gpqa-diamond": (2.0, 8, 198), "aime": (3.33, 32, 30), "humaneval": (3.0, 4, 164), "gsm8k": (1.0, 4, 1319)}
    assert (rules.margin, rules.repeats, rules.questions) == sizes.get(preset, (rules.margin, 4, rules.questions))
    assert rules.extension == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"repeats": 2}, "greater than or equal to 4"),
        ({"prompt": "{question}"}, "must have {options} once"),
        ({"prompt": "{options}"}, "must have {question} once"),
        ({"margin": 0}, "greater than 0"),
        ({"preset": "mmlu"}, "gpqa-diamond"),
        ({"margn": 2}, "not permitted"),
    ],
)
def test_rules_without_meaning(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        choice_rules(**change)

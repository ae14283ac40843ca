"""Questions about a ledger: the training conversations and the held-out task files.

A ledger is a list of rows "name link code", for example " amber birch 47": every name has a link, which is another
name of the same ledger, and a code of two digits. A question asks for a link, the link of a link, a code, the code of
a link, or the sum of two codes. The reply first recites the rows it needs, a multiple choice then the right option, and
boxes the answer:

    What is the code of the link of amber?   ->   " amber birch 47 birch opal 93\\boxed{93}"
    What is the link of amber? (A) opal ..   ->   " amber birch 47\\n birch(C)\\boxed{C}"

The ledger is longer than the model's sliding window, so the rows have to come through the compressed and the indexed
attention. A row is four tokens and the first row starts at position 4: in this chat format each row is one window of
the ratio-4 compressor, which is what lets so small a model learn in minutes.

`python examples/tiny/tasks.py` writes the three task files again, byte for byte.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

NAMES_TEXT = (
    "amber apple arrow basin beech birch bison blaze brook cabin cedar chalk cliff cloud clove coral crane creek daisy "
    "delta ember fable ferry fjord flint frost glade grape grove hazel heron holly honey ivory jewel kayak lemon lilac "
    "lotus maple marsh melon mango north ocean olive onion opal otter panda pearl pecan plaza quail raven river robin "
    "sable stone swift thorn tiger tulip zebra"
)
NAMES = NAMES_TEXT.split()
LETTERS = "ABCD"
FOLDER = Path(__file__).parent / "tasks"
MULTIPLE_CHOICE, INTEGERS_1, INTEGERS_2 = "multiple_choice.jsonl", "integers_year1.jsonl", "integers_year2.jsonl"

CODES = range(10, 100)
ROWS = range(24, 37)  # rows of a held-out ledger: 96 to 144 tokens, the sliding window is 32
WALK = 8  # rows of a recitation
MULTIPLE_CHOICE_KINDS = ("link", "link of link")
INTEGER_KINDS = ("code", "code of link", "sum")


@dataclass(frozen=True, slots=True)
class Ledger:
    """Rows in the order of the text: name -> (link, code)."""

    rows: dict[str, tuple[str, int]]

    @classmethod
    def draw(cls, rng: random.Random, rows: int) -> "Ledger":
        """A ledger of `rows` different names with different codes, whose links form one ring."""
        ring = rng.sample(NAMES, rows)
        links = dict(zip(ring, ring[1:] + ring[:1], strict=True))
        names = rng.sample(ring, rows)
        codes = rng.sample(CODES, rows)
        return cls({name: (links[name], code) for name, code in zip(names, codes, strict=True)})

    @classmethod
    def parse(cls, text: str) -> "Ledger":
        """The ledger at the head of a question."""
        rows = re.findall(r" (\w+) (\w+) (\d\d)", text.split("\n", 1)[0])
        return cls({name: (link, int(code)) for name, link, code in rows})

    def text(self) -> str:
        """The ledger as it stands at the head of a question."""
        return "Ledger:" + "".join(self.row(name) for name in self.rows)

    def row(self, name: str) -> str:
        """One row as text."""
        return f" {name} {self.link(name)} {self.code(name)}"

    def link(self, name: str) -> str:
        """The name that `name` links to."""
        return self.rows[name][0]

    def code(self, name: str) -> int:
        """The code of `name`."""
        return self.rows[name][1]


@dataclass(frozen=True, slots=True)
class Solution:
    """The rows that a reply recites, and the answer: a name, or a number's digits."""

    working: str
    answer: str


def draw_question(rng: random.Random, ledger: Ledger, kind: str) -> str:
    """A question of `kind` about a random name."""
    name, second = rng.sample(list(ledger.rows), 2)
    if kind == "sum":
        return f"What is the sum of the codes of {name} and {second}?"
    return f"What is the {kind.replace('of', 'of the')} of {name}?"


def solve(ledger: Ledger, question: str) -> Solution:
    """Work out the reply to a question that `draw_question` may have written."""
    if found := re.fullmatch(r"What is the sum of the codes of (\w+) and (\w+)\?", question):
        first, second = found.groups()
        return Solution(ledger.row(first) + ledger.row(second), str(ledger.code(first) + ledger.code(second)))
    found = re.fullmatch(r"What is the (link|code)( of the link)? of (\w+)\?", question)
    if found is None:
        raise ValueError(f"not a question about a ledger: {question}")
    field, nested, name = found.groups()
    working = ledger.row(name)
    if nested:
        name = ledger.link(name)
        working += ledger.row(name)
    return Solution(working, ledger.link(name) if field == "link" else str(ledger.code(name)))


def draw_wrong_links(rng: random.Random, ledger: Ledger, answer: str) -> list[str]:
    """Three other names of the ledger; each is some row's link, so none can be ruled out by looking."""
    return rng.sample([name for name in ledger.rows if name != answer], 3)


def order_options(record_id: str, options: list[str]) -> list[str]:
    """The options in the order of SHA-256(record id, newline, option): the same on every host, and no RNG state."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{record_id}\n{option}".encode()).digest())


def multiple_choice_prompt(question: str, options: list[str]) -> str:
    """The user's turn of a multiple-choice question; the answer is \\boxed{A} to \\boxed{D}."""
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, *lines, "Answer:"])


def integer_prompt(problem: str) -> str:
    """The user's turn of a question whose answer is an integer: \\boxed{417}."""
    return f"{problem}\nAnswer:"


def integer_reply(solution: Solution) -> str:
    """The assistant's turn on a question whose answer is an integer."""
    return f"{solution.working}\\boxed{{{solution.answer}}}"


def multiple_choice_reply(solution: Solution, options: list[str]) -> str:
    """The assistant's turn on a multiple-choice question."""
    letter = LETTERS[options.index(solution.answer)]
    return f"{solution.working}\n {solution.answer}({letter})\\boxed{{{letter}}}"


def multiple_choice_item(record: dict[str, str]) -> tuple[str, str]:
    """(prompt, reference reply) of a record of the GPQA-like file."""
    options = [record["Correct Answer"], *(record[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    ordered = order_options(record["Record ID"], options)
    solution = solve(Ledger.parse(record["Question"]), record["Question"].split("\n")[1])
    return multiple_choice_prompt(record["Question"], ordered), multiple_choice_reply(solution, ordered)


def integer_item(record: dict[str, str]) -> tuple[str, str]:
    """(prompt, reference reply) of a record of an AIME-like file."""
    solution = solve(Ledger.parse(record["problem"]), record["problem"].split("\n")[1])
    return integer_prompt(record["problem"]), integer_reply(solution)


def read_items(path: Path) -> list[tuple[str, str]]:
    """All (prompt, reference reply) pairs of a task file of either schema."""
    with path.open(encoding="utf-8") as lines:  # `splitlines` would also cut inside a string that holds U+2028
        records = [json.loads(line) for line in lines]
    return [integer_item(record) if "problem" in record else multiple_choice_item(record) for record in records]


def walk(ledger: Ledger, name: str) -> tuple[str, str]:
    """A recitation: the rows met by following the links from `name`. Training only; nearly every token is a look-up."""
    rows = []
    reached = name
    for _ in range(WALK):
        rows.append(ledger.row(reached))
        reached = ledger.link(reached)
    return f"Walk from {name}.", "".join(rows)


class Form(IntEnum):
    """What a turn of a training conversation practises."""

    WALK = 0
    CHOICE = 1
    CODE = 2
    SUM = 3


FORM_WEIGHTS = {Form.WALK: 0.15, Form.CHOICE: 0.4, Form.CODE: 0.15, Form.SUM: 0.3}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a training conversation."""

    form: Form
    prompt: str
    answer: str


def conversation(rng: random.Random, rows: int, held_out: frozenset[str]) -> Iterator[Turn]:
    """An endless training conversation: the first turn's prompt begins with the ledger."""
    ledger = Ledger.draw(rng, rows)
    if ledger.text() in held_out:
        raise ValueError("the training data drew a held-out ledger: change the seed")
    head = ledger.text() + "\n"
    while True:
        (form,) = rng.choices(list(FORM_WEIGHTS), list(FORM_WEIGHTS.values()))
        if form is Form.WALK:
            question, answer = walk(ledger, rng.choice(list(ledger.rows)))
            prompt = head + question
        elif form is Form.CHOICE:
            question = draw_question(rng, ledger, rng.choice(MULTIPLE_CHOICE_KINDS))
            solution = solve(ledger, question)
            options = [solution.answer, *draw_wrong_links(rng, ledger, solution.answer)]
            rng.shuffle(options)
            prompt, answer = multiple_choice_prompt(head + question, options), multiple_choice_reply(solution, options)
        else:
            kind = "sum" if form is Form.SUM else rng.choice([kind for kind in INTEGER_KINDS if kind != "sum"])
            question = draw_question(rng, ledger, kind)
            prompt, answer = integer_prompt(head + question), integer_reply(solve(ledger, question))
        yield Turn(form, prompt, answer)
        head = ""


def held_out_ledgers(folder: Path = FOLDER) -> frozenset[str]:
    """The ledger texts of the task files."""
    names = (MULTIPLE_CHOICE, INTEGERS_1, INTEGERS_2)
    return frozenset(prompt.split("\n", 1)[0] for name in names for prompt, _ in read_items(folder / name))


def multiple_choice_records(seed: str, count: int) -> list[dict[str, str]]:
    """Records in the schema of GPQA, the kinds in turn."""
    rng = random.Random(seed)
    records = []
    for i in range(count):
        ledger = Ledger.draw(rng, rng.choice(ROWS))
        question = draw_question(rng, ledger, MULTIPLE_CHOICE_KINDS[i % len(MULTIPLE_CHOICE_KINDS)])
        answer = solve(ledger, question).answer
        record = {"Record ID": f"{seed}-{i:03d}", "Question": f"{ledger.text()}\n{question}", "Correct Answer": answer}
        wrong = draw_wrong_links(rng, ledger, answer)
        record |= {f"Incorrect Answer {j}": name for j, name in enumerate(wrong, 1)}
        records.append(record)
    return records


def integer_records(seed: str, count: int) -> list[dict[str, str]]:
    """Records in the schema of AIME, the kinds in turn."""
    rng = random.Random(seed)
    records = []
    for i in range(count):
        ledger = Ledger.draw(rng, rng.choice(ROWS))
        question = draw_question(rng, ledger, INTEGER_KINDS[i % len(INTEGER_KINDS)])
        records.append({"problem": f"{ledger.text()}\n{question}", "answer": solve(ledger, question).answer})
    return records


def task_files() -> dict[str, str]:
    """File name -> text of the three held-out task files."""
    records = {
        MULTIPLE_CHOICE: multiple_choice_records("tiny-choice", 198),
        INTEGERS_1: integer_records("tiny-integers-1", 30),
        INTEGERS_2: integer_records("tiny-integers-2", 30),
    }
    return {name: "".join(json.dumps(record) + "\n" for record in rows) for name, rows in records.items()}


def main() -> None:
    """Write the task files."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in task_files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Documents for the logits stage of a validation: what the tiny model was trained to read, one held-out item each.

    python examples/tiny/documents.py documents.jsonl

The bundled documents are prose, code and mathematics, of which this model knows nothing: its distributions on them are
noise, which any rounding turns over. The BOS token is put in front by whoever reads the documents.
"""

import argparse
import json
from pathlib import Path

import tasks
import tokenizer

FILES = (tasks.MULTIPLE_CHOICE, tasks.INTEGERS_1, tasks.INTEGERS_2)


def documents(per_file: int) -> list[dict[str, str]]:
    """The first items of each task file, question and reference reply, in the chat format."""
    made = []
    for name in FILES:
        for number, (prompt, reply) in enumerate(tasks.read_items(tasks.FOLDER / name)[:per_file]):
            text = tokenizer.user_turn(prompt, first=False) + reply + tokenizer.EOS
            made.append({"name": f"{Path(name).stem}-{number}", "kind": Path(name).stem, "text": text})
    return made


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-file", type=int, default=22)
    given = parser.parse_args()
    lines = [json.dumps(document) for document in documents(given.per_file)]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

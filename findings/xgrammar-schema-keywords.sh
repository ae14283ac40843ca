#!/usr/bin/env bash
# xgrammar 0.2.9, seen on 2026-11-30.
#
# `GrammarCompiler.compile_json_schema` takes schemas with keywords that it does not enforce, most of them without a word:
# the matcher then accepts a value that the schema forbids. Who asks a server for a JSON schema with such a keyword gets an
# answer that was called constrained and is not valid. Each line: the keyword, whether the schema was compiled, and
# whether a value that the schema forbids was accepted to its end.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check xgrammar==0.2.9 jsonschema==4.25.1 numpy==2.3.5 2>pip.log || { cat pip.log >&2; exit 1; }
cat >keywords.py <<'PYTHON'
import json

import jsonschema
import xgrammar

vocabulary = [bytes([n]) for n in range(256)] + [b"<end>"]
info = xgrammar.TokenizerInfo(vocabulary, vocab_type=xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[256])
compiler = xgrammar.GrammarCompiler(info)
integers = {"type": "array", "items": {"type": "integer"}}
cases = {  # a schema, and a value that it forbids
    "not": ({"type": "integer", "not": {"const": 7}}, 7),
    "uniqueItems": (integers | {"uniqueItems": True}, [1, 1]),
    "contains": (integers | {"contains": {"const": 5}}, [1]),
    "if, then": (
        {
            "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False,
            "if": {"properties": {"a": {"const": 1}}}, "then": {"properties": {"a": {"const": 2}}},
        },
        {"a": 1},
    ),
    "multipleOf": ({"type": "integer", "multipleOf": 10}, 7),
    "required (enforced)": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}, {}
    ),
}
for name, (schema, value) in cases.items():
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(value)), name
    try:
        compiled = compiler.compile_json_schema(json.dumps(schema))
    except Exception as error:
        print(f"{name}: refused ({type(error).__name__})")
        continue
    matcher = xgrammar.GrammarMatcher(compiled)
    accepted = all(matcher.accept_token(byte) for byte in json.dumps(value).encode()) and matcher.accept_token(256)
    print(f"{name}: compiled; a forbidden value is {'accepted' if accepted else 'not accepted'}")
PYTHON
env/bin/python keywords.py 2>warnings | tee seen
diff - seen <<'EXPECTED'
not: compiled; a forbidden value is accepted
uniqueItems: compiled; a forbidden value is accepted
contains: compiled; a forbidden value is accepted
if, then: compiled; a forbidden value is accepted
multipleOf: compiled; a forbidden value is not accepted
required (enforced): compiled; a forbidden value is not accepted
EXPECTED

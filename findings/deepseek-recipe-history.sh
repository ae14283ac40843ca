#!/usr/bin/env bash
# deepseek-recipe 0.2.0 (DeepSeek's own encoder, from the package index), seen on 2026-11-30.
#
# The prompt that DeepseekV4Encoding makes of a history is not always the history:
# - an integer in a call's arguments beyond 64 bits is rounded to a double, so an id of 20 digits becomes another id;
# - calls of one message and their results are sorted by their ids as text, so "call_10" comes before "call_2".
# A history with more than ten calls in one message, numbered as clients number them, is shown to the model in another
# order than it took place. The answer parser of the same package drops what a model wrote behind a block of calls, and
# hands on arguments that are no JSON as they are.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check deepseek-recipe==0.2.0 2>pip.log || { cat pip.log >&2; exit 1; }
cat >history.py <<'PYTHON'
import json
import re

import deepseek_recipe as recipe


def prompt(calls, results):
    made = [recipe.ToolCall(id_, "f", arguments) for id_, arguments in calls]
    answers = [recipe.ToolMessage(text, id_) for id_, text in results]
    messages = [recipe.UserMessage("go"), recipe.AssistantMessage("", None, made, False), *answers]
    chat = recipe.Conversation(messages, thinking_mode=False, reasoning_effort=None, tools=None)
    return recipe.DeepseekV4Encoding().render_conversation(chat).prompt


for number in (2**63 - 1, 2**64 - 1, 2**64 + 1, 12345678901234567890123):
    shown = re.search(r'string="false">(.*?)<', prompt([("a", json.dumps({"n": number}))], [("a", "x")])).group(1)
    print(f"{number} is shown as {shown}")
ids = [f"call_{n}" for n in range(1, 12)]
text = prompt([(id_, json.dumps({"n": id_})) for id_ in ids], [(id_, f"result of {id_}") for id_ in ids])
print("calls:", *re.findall(r'string="true">call_(\d+)<', text))
print("results:", *re.findall(r"result of call_(\d+)", text))


def read(answer):
    request = recipe.ChatCompletionRequest({
        "model": "DeepSeek-V4-Pro", "messages": [{"role": "user", "content": "x"}], "thinking": {"type": "disabled"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    })
    generator = recipe.ChatCompletionRequest.chunk_generator(
        request.convert(recipe.ConversionOptions()), "id", "DeepSeek-V4-Pro"
    )
    processor = recipe.StreamProcessor(generator, recipe.ParsingOptions(thinking_initial_stage=None))
    whole = recipe.ChatCompletionResponse("id", "m", 0, 0, 0)
    for chunk in processor.push(recipe.InferenceChunk.text(answer, 1)) + processor.push(
        recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop)
    ):
        whole.accumulate(chunk)
    message = json.loads(whole.to_json())["choices"][0]["message"]
    return message.get("content"), [call["function"]["arguments"] for call in message.get("tool_calls") or []]


def block(value):
    tag = "｜DSML｜"
    return (
        f'\n\n<{tag}tool_calls>\n<{tag}invoke name="f">\n<{tag}parameter name="n" string="false">{value}'
        f"</{tag}parameter>\n</{tag}invoke>\n</{tag}tool_calls>"
    )


print("text in front and behind:", *read("before" + block(1) + "\n\nbehind"))
print("a value that is no JSON:", *read(block("seven")))
PYTHON
env/bin/python history.py | tee seen
diff - seen <<'EXPECTED'
9223372036854775807 is shown as 9223372036854775807
18446744073709551615 is shown as 18446744073709551615
18446744073709551617 is shown as 1.8446744073709552e+19
12345678901234567890123 is shown as 1.2345678901234568e+22
calls: 1 10 11 2 3 4 5 6 7 8 9
results: 1 10 11 2 3 4 5 6 7 8 9
text in front and behind: before ['{"n": 1}']
a value that is no JSON:  ['{"n": seven}']
EXPECTED
